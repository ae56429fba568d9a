-- Counts of bytes: whoever has a limit has one of what is there. What a count says is not compared with all that is there,
-- which is in no list.
--@include base
--@include state
--@include bytes
--@include weighing
--@include doctor

local function add_byte_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong
  local MOST_POLICIES = 200 -- read in one call

  local function weigh_anew(user)
    new_weighing().change_limit(user, true)
    count('byte_limits', -1) -- it had that limit before
    return 'counted anew by the claims that follow'
  end

  -- `all`: tasks that it has.
  function checks.bytes(user, _, all)
    if not bytes or is_weighing or not bytes.limit(user) then return end
    local kept = prefix .. 'bytes:' .. user
    local lacks = all > 0 and call('EXISTS', kept) == 0 and 'bytes:'
      or call('HLEN', kept) > 2 and call('EXISTS', prefix .. 'bytes-expiring:' .. user) == 0 and 'bytes-expiring:'
      or call('EXISTS', prefix .. 'xcom-spaces:' .. user) == 1 and call('EXISTS', prefix .. 'xcom-bytes:' .. user) == 0
        and 'xcom-bytes:'
    if not lacks then return end
    wrong('lost-count', lacks .. user, 'its limit of bytes would be counted wrongly', function() return weigh_anew(user) end)
  end

  local function has_limit(whose)
    local packed = call('GET', prefix .. 'policy:' .. whose)
    return packed and cmsgpack.unpack(packed).max_bytes
  end

  -- How many policies have such a limit, where there are not too many to look.
  function checks.byte_limits()
    if call('ZCARD', prefix .. 'policy-users') > MOST_POLICIES then return end
    local limits = has_limit('*') and 1 or 0
    for _, user in ipairs(call('ZRANGE', prefix .. 'policy-users', 0, -1)) do
      if has_limit(user) then limits = limits + 1 end
    end
    local told = call('HGET', state_key, 'byte_limits')
    if tonumber(told or 0) == limits then return end
    wrong('wrong-total', 'state', 'byte_limits says ' .. (told or 'nothing') .. ', there are ' .. limits, function()
      call('HSET', state_key, 'byte_limits', limits)
      return 'counted anew'
    end)
  end
end

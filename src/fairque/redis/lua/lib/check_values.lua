-- What is kept beside the tasks: values that tasks share, and what is measured.
--@include base
--@include metrics_format
--@include doctor
--@include check_keys

local function add_value_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong

  local function names(user, space)
    local of = user .. ':' .. space
    return 'xcom:' .. of, 'xcom-expiry:' .. of, 'xcom-spaces:' .. user
  end

  -- One value, from either key.
  function checks.value(user, _, space, key)
    local values, expiries = names(user, space)
    local value, expiry = call('HGET', prefix .. values, key), call('ZSCORE', prefix .. expiries, key)
    if (value and true or false) == (expiry and true or false) then return end
    wrong('half-a-value', value and expiries or values, 'the value ' .. key .. (value and ' never goes' or ' is gone'), function()
      if value and #value >= 8 then
        call('ZADD', prefix .. expiries, struct.unpack('>d', value), key)
        call('PEXPIREAT', prefix .. expiries, string.format('%d', call('PEXPIRETIME', prefix .. values)))
        return 'expires again'
      end
      call('ZREM', prefix .. expiries, key)
      call('HDEL', prefix .. values, key)
      return 'removed'
    end)
  end

  -- A namespace, from its values or from the list of its user. One that has expired is removed with the next value.
  function checks.space(user, _, space)
    local values, _, spaces = names(user, space)
    local at = call('ZSCORE', prefix .. spaces, space)
    if call('EXISTS', prefix .. values) == 1 and not at then
      wrong('unlisted-space', spaces, 'a purge would not find ' .. space, function()
        local ends = string.format('%d', call('PEXPIRETIME', prefix .. values))
        call('ZADD', prefix .. spaces, ends, space)
        if call('PEXPIRETIME', prefix .. spaces) < tonumber(ends) then call('PEXPIREAT', prefix .. spaces, ends) end
        return 'listed'
      end)
    end
  end

  local function is_measured(packed)
    local ok, m = pcall(cmsgpack.unpack, packed)
    if not ok or type(m) ~= 'table' or #m < WAITS - 1 then return false end
    for _, number in ipairs(m) do
      if type(number) ~= 'number' then return false end
    end
    return true
  end

  function checks.metrics(user)
    local packed = call('GET', prefix .. 'metrics:' .. user)
    if not packed or is_measured(packed) then return end
    wrong('corrupt', 'metrics:' .. user, 'cannot be read', function() return set_aside('metrics:' .. user) end)
  end

  function checks.run_time(_, _, name)
    local took = call('HGET', prefix .. 'run-times', name)
    if not took or string.match(took, '^%d+ [%d.e+-]+$') then return end
    wrong('corrupt', 'run-times', 'of ' .. name .. ' cannot be read', function()
      call('HDEL', prefix .. 'run-times', name)
      return 'measured anew'
    end)
  end
end

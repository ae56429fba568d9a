-- What the queue keeps of itself: numbers that can be counted anew.
--@include base
--@include state
--@include version
--@include doctor

local function add_state_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong

  local function is_finite(text)
    local number = tonumber(text or 0)
    return number and number == number and math.abs(number) < math.huge
  end

  local function begin_anew()
    root.clock, root.mean, arrival = tonumber(call('ZRANGE', ready_key, 0, 0, 'WITHSCORES')[2] or 0), 0, now_us
  end

  -- The script writes them back at its end.
  local function check_clock()
    if is_finite(of_queue.clock) and is_finite(of_queue.arrival) and is_finite(of_queue.mean) then return end
    wrong('bad-number', 'state', 'the clock of the queue is no number', function()
      begin_anew()
      return 'as the lowest tag'
    end)
  end

  local function check_total(field, told, counted)
    if tonumber(told or 0) == counted then return end
    local text = 'says ' .. (told or 'nothing') .. ', there are ' .. string.format('%d', counted)
    wrong('wrong-total', 'state', field .. ' ' .. text, function()
      call('HSET', state_key, field, counted)
      of_queue[field] = counted -- to which the script adds at its end
      return 'counted anew'
    end)
  end

  -- Totals of what is listed as a whole. `is_used`: there are users.
  function checks.state(_, _, is_used)
    if not of_queue.arrival then -- what workers tell of themselves may be there again
      if not is_used and call('EXISTS', prefix .. 'settings') == 0 then return end
      return wrong('lost-state', 'state', 'clock, totals, and whether there are policies and limits', function()
        begin_anew()
        return 'begun anew: what can be counted is'
      end)
    end
    check_clock()
    local policies = call('ZCARD', prefix .. 'policy-users') + call('ZCARD', prefix .. 'policy-groups') +
      call('EXISTS', prefix .. 'policy:*')
    if has_policies or policies > 0 then check_total('policies', has_policies, policies) end
    local assigned = call('ZCARD', prefix .. 'assignments') - (call('ZSCORE', prefix .. 'assignments', '*') and 1 or 0)
    if has_assigned or assigned > 0 then check_total('assigned', has_assigned, assigned) end
    local limits = call('ZCARD', prefix .. 'limit-keys')
    if has_limits or limits > 0 then check_total('limits', has_limits, limits) end
    if call('EXISTS', prefix .. 'expiring') == 1 and not has_expiring then
      wrong('bad-number', 'state', 'tasks that expire are not looked for', function()
        call('HSET', state_key, 'expiring', 1)
        return 'looked for from now on'
      end)
    end
    if call('EXISTS', prefix .. 'swept') == 1 and call('HEXISTS', state_key, 'sweep') == 0 then
      wrong('bad-number', 'state', 'those who are to be looked at anew are not', function()
        call('HSET', state_key, 'sweep', 1)
        return 'looked at by the claims that follow'
      end)
    end
  end

  -- Those that were counted over all users (totals.lua), if nothing has moved since: `version` tells.
  function checks.totals(_, _, version, counted)
    if version_of_state() ~= version then return end
    for field, number in pairs(counted) do check_total(field, call('HGET', state_key, field), number) end
  end
end

-- Users: who has tasks stands where they are served from, and nobody else does.
--@include base
--@include state
--@include fair
--@include cursor
--@include wake
--@include doctor

local function add_user_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong
  local SORTED = { 'critical', 'normal', 'held', 'scheduled', 'dead' }

  local function tasks_of(user)
    local has, all = {}, 0
    for _, spot in ipairs(SORTED) do has[spot] = call('ZCARD', place_key(spot, user)) end
    has.deferred = call('SCARD', place_key('deferred', user))
    for _, lane in ipairs({ 'critical', 'normal' }) do has[lane .. '-stream'] = call('XLEN', stream_key(lane, user)) end
    for _, number in pairs(has) do all = all + number end
    return has, all
  end

  local function check_listed(user, all)
    if all == 0 or call('ZSCORE', users_key, user) then return end
    wrong('unlisted-user', 'users', 'has tasks, and is not listed', function()
      call('ZADD', users_key, now, user)
      return 'listed'
    end)
  end

  local function check_due(user, scheduled)
    local due = call('ZSCORE', due_key, user)
    if scheduled == 0 then
      if not due then return end
      return wrong('due-without-tasks', 'due', 'has no scheduled task', function()
        call('ZREM', due_key, user)
        return 'removed'
      end)
    end
    local at = math.floor(call('ZRANGE', place_key('scheduled', user), 0, 0, 'WITHSCORES')[2])
    if due and tonumber(due) <= math.max(at, now) then return end
    wrong('not-due', 'due', due and 'is looked at too late' or 'nobody looks for its scheduled tasks', function()
      call('ZADD', due_key, at, user)
      wake(user, 1)
      return 'looked at in time'
    end)
  end

  local function check_group(user, lane)
    for _, group in ipairs(call('XINFO', 'GROUPS', stream_key(lane, user))) do
      if group[2] == 'workers' then return end
    end
    wrong('no-group', lane .. '-stream:' .. user, 'its group is gone: nothing can be delivered or settled', function()
      call('XGROUP', 'CREATE', stream_key(lane, user), 'workers', '0')
      return 'made anew'
    end)
  end

  local function check_lease(user, lane, running)
    local member = lane .. ':' .. user
    local look, exists = call('ZSCORE', leases_key, member), call('EXISTS', stream_key(lane, user)) == 1
    if exists and running > 0 then
      check_group(user, lane)
      if look then return end
      return wrong('no-lease', 'leases', 'nobody looks for silent workers in ' .. member, function()
        call('ZADD', leases_key, now, member)
        return 'looked at from now on'
      end)
    end
    if not (look or exists) then return end
    wrong('lease-without-tasks', exists and lane .. '-stream:' .. user or 'leases', 'nothing runs in ' .. member, function()
      call('DEL', stream_key(lane, user))
      call('ZREM', leases_key, member)
      forget_cursor(member)
      return 'removed'
    end)
  end

  local function put_where_it_belongs(user)
    local may_run
    if governed then
      may_run = governed.review(user)
    else
      local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
      may_run = admit(user, cost_of_task(user, id))
    end
    if may_run then wake(user, 1) end
    return 'put where it belongs'
  end

  -- Who has tasks and is not ready is held back by its policy, and comes back: at its moment, or by an event.
  local function check_held_back(user)
    local parked = governed and call('ZSCORE', prefix .. 'parked', user)
    if parked and tonumber(parked) <= now then return end
    if governed and (call('ZSCORE', prefix .. 'swept', user) or call('HEXISTS', state_key, 'sweep') == 1) then return end
    local u = governed and governed.user(user)
    local gate = u and governed.gate(u)
    if not gate then
      return wrong('not-ready', 'ready', 'has tasks that may run, and is not served', function()
        return put_where_it_belongs(user)
      end)
    end
    local p = u.policy
    local waits_for_event = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
    if gate == math.huge and waits_for_event then return end
    if parked and tonumber(parked) <= gate + 1 then return end
    wrong('not-parked', 'parked', 'is held back, and does not come back in time', function()
      return put_where_it_belongs(user)
    end)
  end

  local function check_reserved(user, tag)
    local reserved = has_policies and call('ZSCORE', prefix .. 'reserved', user)
    if not reserved or reserved == tag then return end
    wrong('wrong-reservation', 'reserved', tag and 'has another tag' or 'is not ready', function()
      if tag then call('ZADD', prefix .. 'reserved', tag, user) else call('ZREM', prefix .. 'reserved', user) end
      return tag and 'has its tag' or 'removed'
    end)
  end

  local function check_parked(user)
    if not call('ZSCORE', prefix .. 'parked', user) then return end
    wrong('parked-without-tasks', 'parked', 'has no task that is held back', function()
      call('ZREM', prefix .. 'parked', user)
      return 'removed'
    end)
  end

  function checks.user(user)
    local has, all = tasks_of(user)
    check_listed(user, all)
    check_due(user, has.scheduled)
    check_lease(user, 'critical', has['critical-stream'])
    check_lease(user, 'normal', has['normal-stream'])
    local waits = has.critical + has.normal
    local tag = call('ZSCORE', governed and governed.user(user).ready_key or ready_key, user)
    if waits > 0 and not tag then check_held_back(user) end
    if waits == 0 and tag then
      wrong('ready-without-tasks', 'ready', 'has no task that may run', function()
        retire(user)
        return 'not ready any more'
      end)
    end
    check_reserved(user, tag)
    if waits + has.held == 0 then check_parked(user) end
  end

  -- A user in a line.
  function checks.member(user, _, line)
    local own = governed and governed.user(user).ready_key or ready_key
    if own == prefix .. line or not call('ZSCORE', prefix .. line, user) then return end
    wrong('wrong-line', line, 'is of another group', function()
      call('ZREM', prefix .. line, user)
      return 'removed'
    end)
  end

  -- A group, which is ready when one of its users is.
  function checks.group(_, _, group)
    local member, line = '@' .. group, 'ready:' .. group
    local has, tag = call('EXISTS', prefix .. line) == 1, call('ZSCORE', ready_key, member)
    if has == (tag and true or false) then return end
    wrong(has and 'not-ready' or 'ready-without-tasks', 'ready', 'group ' .. group, function()
      if not has then
        call('ZREM', ready_key, member)
        return 'not ready any more'
      end
      enter(ready_key, member, tonumber(call('HGET', prefix .. 'group:' .. group, 'tag') or 0), clock, mean, mean)
      return 'ready again'
    end)
  end
end

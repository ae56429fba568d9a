-- Users: who has tasks stands where they are served from, and nobody else does.
--@include base
--@include state
--@include fair
--@include wake
--@include doctor
--@include check_bytes
--@include absent
--@include moves

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

  -- The first of what it has in a place, by moments, is looked at in time. too_late, idle: kinds of findings.
  local function check_first(user, spot, list, has, too_late, idle)
    local all, first = prefix .. list, call('ZRANGE', place_key(spot, user), 0, 0, 'WITHSCORES')[2]
    local at = call('ZSCORE', all, user)
    if not first then
      if not at then return end
      return wrong(idle, list, 'has no ' .. has, function()
        call('ZREM', all, user)
        return 'removed'
      end)
    end
    if not at and call('ZSCORE', prefix .. 'damaged', user) then return end -- lib/damage.lua
    first = math.floor(first)
    if at and tonumber(at) <= math.max(first, now) then return end
    wrong(too_late, list, at and 'is looked at too late' or 'nobody looks for its ' .. has .. 's', function()
      call('ZADD', all, first, user)
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
  local function check_held_back(u)
    local user = u.name
    local parked = governed and tonumber(call('ZSCORE', prefix .. 'parked', user) or nil)
    if parked and parked <= now then return end
    if call('ZSCORE', prefix .. 'damaged', user) then return end -- lib/damage.lua
    if governed and (sweep_asked or call('ZSCORE', prefix .. 'swept', user)) then return end
    local gate = gate_of(user)
    if not gate then
      return wrong('not-ready', 'ready', 'has tasks that may run, and is not served', function()
        return put_where_it_belongs(user)
      end)
    end
    local p = u.policy
    local waits_for_event = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
    if gate == gates.NEVER and waits_for_event and not u.is_by_share or parked and parked <= gate + 1 then return end
    wrong('not-parked', 'parked', 'is held back, and does not come back in time', function()
      return put_where_it_belongs(user)
    end)
  end

  local function check_reserved(u, tag)
    local reserved = governed and tonumber(call('ZSCORE', prefix .. 'reserved', u.name) or nil)
    if not reserved or reserved == tag then return end
    wrong('wrong-reservation', 'reserved', tag and 'has another tag' or 'is not ready', function()
      if tag then call('ZADD', prefix .. 'reserved', tag, u.name) else call('ZREM', prefix .. 'reserved', u.name) end
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

  -- The weight that was counted must not be forgotten while the user stands in line.
  local function check_remembered(u, tag)
    if not tag or call('HEXISTS', user_key(u.name), 'weight') == 0 or call('PTTL', user_key(u.name)) == -1 then return end
    wrong('expires', 'user:' .. u.name, 'the weight of one that is ready would be forgotten', function()
      call('PERSIST', user_key(u.name))
      return 'stays'
    end)
  end

  -- The tree of an assignment has each of its users that is ready, with a tag that is not above the true one.
  local function check_tree(u, tag, name)
    local in_tree = tonumber(call('ZSCORE', assignments.tree_key(name, u.up), u.name) or nil)
    if in_tree and in_tree <= tag then return end
    wrong('not-in-tree', 'ready@' .. name, in_tree and 'stands too high' or 'is ready, and its workers do not see it', function()
      nodes.known[u.name] = nil
      call('ZADD', assignments.tree_key(name, u.up), 'LT', tag, u.name)
      assignments.enter(nodes.user(u.name))
      return 'in its tree'
    end)
  end

  local function check_looks(u, name)
    for _, lane in ipairs({ 'critical', 'normal' }) do
      local member = lane .. ':' .. u.name
      local look = tonumber(call('ZSCORE', leases_key, member) or nil)
      local in_list = look and tonumber(call('ZSCORE', prefix .. 'leases@' .. name, member) or nil)
      if look and not (in_list and in_list <= look) then
        wrong('no-lease', 'leases@' .. name, 'its workers do not look for silent ones in ' .. member, function()
          call('ZADD', prefix .. 'leases@' .. name, 'LT', look, member)
          return 'looked at from now on'
        end)
      end
    end
  end

  local function check_assigned(u, tag)
    for _, name in ipairs(call('SMEMBERS', prefix .. 'assignments:' .. u.name)) do
      if call('ZSCORE', prefix .. 'assignments', name) then
        if tag then check_tree(u, tag, name) end
        check_looks(u, name)
      end
    end
  end

  function checks.user(user)
    nodes.known[user] = nil
    local has, all = tasks_of(user)
    check_listed(user, all)
    check_first(user, 'scheduled', 'due', 'scheduled task', 'not-due', 'due-without-tasks')
    check_first(user, 'expiring', 'expiring', 'task that expires', 'not-due', 'due-without-tasks')
    check_first(user, 'lapsing', 'lapsing', 'dead letter with links', 'unlisted-end', 'unlisted-end')
    check_lease(user, 'critical', has['critical-stream'])
    check_lease(user, 'normal', has['normal-stream'])
    local u, waits = nodes.user(user), has.critical + has.normal
    local tag = tonumber(call('ZSCORE', u.up.key, user) or nil)
    if waits > 0 and not tag then check_held_back(u) end
    if waits == 0 and tag then
      wrong('ready-without-tasks', 'ready', 'has no task that may run', function()
        retire(user)
        return 'not ready any more'
      end)
    end
    check_reserved(u, tag)
    check_remembered(u, tag)
    if waits + has.held == 0 then check_parked(user) end
    if has_assigned then check_assigned(u, tag) end
    checks.bytes(user, '', all)
  end

  -- Who lives in another partition is not listed here, and whoever looks here is told so.
  function checks.moved(_, _, user)
    if not has_moved then
      wrong('unmarked', 'state', 'users have moved, and scripts do not know it', function()
        call('HSET', state_key, 'moved', 1)
        return 'marked'
      end)
    end
    if call('ZSCORE', users_key, user) and not is_frozen(user) then
      wrong('two-homes', 'moved', user .. ' lives here, and whoever looks here is sent on')
    end
  end

  -- Who comes from another partition, or has left for one, has somebody who sees to it: lib/moves.lua. What is still noted as
  -- to be erased, and has no end, is of one that has left.
  function checks.on_its_way(_, _, user)
    local leaves = call('HEXISTS', departing_key, user) == 1
    local lives = not leaves and not is_frozen(user) and moved_to(user)
    if lives and call('PTTL', manifest_key(user)) == -1 then
      return wrong('forsaken-move', 'departing', user .. ' has left, and what it has left is not erased', function()
        call('HSET', departing_key, user, lives .. ' repair')
        call('ZADD', moves_key, now, user)
        call('HSET', state_key, 'moves', 1)
        return 'goes on'
      end)
    end
    if not leaves and call('HGET', frozen_key(user), 'why') ~= 'arrive' then return end
    if call('ZSCORE', moves_key, user) and call('HEXISTS', state_key, 'moves') == 1 then return end
    wrong('forsaken-move', 'moves', user .. ' is on its way, and nobody goes on with it', function()
      call('ZADD', moves_key, 'NX', now, user)
      call('HSET', state_key, 'moves', 1)
      return 'goes on'
    end)
  end

  function checks.turns(user)
    check_first(user, 'held-keys', 'held-turns', 'key with held tasks', 'not-let-in', 'held-without-tasks')
  end

  function checks.planned(user)
    check_first(user, 'schedules', 'schedules', 'schedule', 'unlisted-schedule', 'lost-schedule')
  end

  -- A user or a group in a line.
  function checks.member(member, _, path)
    local line = path == '' and root or lines.at(path)
    local is_group = string.byte(member) == 64
    local node = is_group and lines.at(string.sub(member, 2)) or nodes.user(member)
    if node.up == line or not call('ZSCORE', line.key, member) then return end
    wrong('wrong-line', path == '' and 'ready' or 'ready:' .. path, member .. ' is of another group', function()
      lines.tag(line, member)
      lines.remove(line, member)
      return 'removed'
    end)
  end

  local function enter_again(node)
    local first, low = lines.lowest(node.up)
    nodes.enter(node, node.up.mean, first, low)
    if first then return 'ready again' end
    node.up.was_joined, node.up.is_changed = true, true
    return 'ready again'
  end

  -- A group, which is ready when one of its users is.
  function checks.group(_, _, path)
    local node = lines.at(path)
    local has, tag = call('EXISTS', node.key) == 1, call('ZSCORE', node.up.key, node.member)
    if has == (tag and true or false) then return end
    wrong(has and 'not-ready' or 'ready-without-tasks', 'ready', 'group ' .. path, function()
      if has then return enter_again(node) end
      lines.keep(node.up, node.member, tonumber(tag))
      lines.tag(node.up, node.member)
      lines.remove(node.up, node.member)
      return 'not ready any more'
    end)
  end

  -- A user and an assignment, as one of the two says. Those of one that ended are released by steps.
  function checks.assigned(user, _, name)
    local lists = call('SISMEMBER', prefix .. 'assignment:' .. name, user) == 1
    local knows = call('SISMEMBER', prefix .. 'assignments:' .. user, name) == 1
    if lists == knows then return end
    local lives = call('ZSCORE', prefix .. 'assignments', name)
    wrong('half-an-assignment', lists and 'assignments:' .. user or 'assignment:' .. name, name .. ' and ' .. user, function()
      local verb = lives and 'SADD' or 'SREM'
      call(verb, prefix .. 'assignment:' .. name, user)
      call(verb, prefix .. 'assignments:' .. user, name)
      return lives and 'in both' or 'in neither'
    end)
  end
end

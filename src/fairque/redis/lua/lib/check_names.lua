-- What governs: policies and limits, and what they hold, each in the lists that lead to it.
--@include base
--@include state
--@include limits
--@include doctor
--@include check_keys

local function add_name_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong

  local function unpacked(key)
    local packed = call('GET', key)
    if not packed then return nil end
    local ok, value = pcall(cmsgpack.unpack, packed)
    return packed, ok and type(value) == 'table' and value
  end

  local function index_of(whose) return string.byte(whose) == 64 and 'policy-groups' or 'policy-users' end

  local function drop_policy(whose)
    local told = set_aside('policy:' .. whose)
    if whose ~= '*' then call('ZREM', prefix .. index_of(whose), whose) end
    count('policies', -1)
    return told
  end

  -- A policy, from its key or from the list.
  function checks.policy(_, _, whose)
    local name, index = 'policy:' .. whose, index_of(whose)
    local packed, policy = unpacked(prefix .. name)
    if packed and not policy then
      return wrong('corrupt', name, 'cannot be read', function() return drop_policy(whose) end)
    end
    local is_listed = whose == '*' or call('ZSCORE', prefix .. index, whose)
    if packed and not is_listed then
      wrong('unlisted-name', index, whose .. ' has a policy, and is not listed', function()
        call('ZADD', prefix .. index, 0, whose)
        return 'listed'
      end)
    elseif is_listed and not packed and whose ~= '*' then
      wrong('lost-policy', name, 'is listed, and gone', function()
        call('ZREM', prefix .. index, whose)
        return 'not listed any more: set it anew'
      end)
    end
  end

  function checks.limit(_, _, name)
    local key = prefix .. 'limit:' .. name
    local exists, is_listed = call('EXISTS', key) == 1, call('ZSCORE', prefix .. 'limit-keys', name)
    if exists and not is_listed then
      wrong('unlisted-name', 'limit-keys', name .. ' has a limit, and is not listed', function()
        call('ZADD', prefix .. 'limit-keys', 0, name)
        return 'listed'
      end)
    elseif is_listed and not exists then
      wrong('lost-limit', 'limit:' .. name, 'is listed, and gone', function()
        call('ZREM', prefix .. 'limit-keys', name)
        call('SREM', prefix .. 'uncounted', name)
        return 'not listed any more: set it anew'
      end)
    end
  end

  -- The mark at the limit is what holds tasks back; the list is what is shown of it.
  function checks.paused(_, _, name)
    local is_marked = call('HEXISTS', prefix .. 'limit:' .. name, 'paused') == 1
    if is_marked == (call('SISMEMBER', prefix .. 'paused-tasks', name) == 1) then return end
    wrong(is_marked and 'unlisted-name' or 'lost-limit', 'paused-tasks', name .. ' is paused, or is listed as such', function()
      call(is_marked and 'SADD' or 'SREM', prefix .. 'paused-tasks', name)
      return is_marked and 'listed' or 'not listed any more'
    end)
  end

  -- A limit that waits for what runs to be counted.
  function checks.uncounted(_, _, name)
    local is_marked = call('HEXISTS', prefix .. 'limit:' .. name, 'uncounted') == 1
    local is_listed = call('SISMEMBER', prefix .. 'uncounted', name) == 1
    if not (is_marked or is_listed) then return end
    if is_marked and is_listed and call('HEXISTS', state_key, 'recount') == 1 then return end
    wrong('uncounted', 'uncounted', name .. ' is not being counted, and nothing of it starts', function()
      if call('EXISTS', prefix .. 'limit:' .. name) == 0 then
        call('SREM', prefix .. 'uncounted', name)
        return 'removed'
      end
      call('HSET', prefix .. 'limit:' .. name, 'uncounted', 1)
      call('SADD', prefix .. 'uncounted', name)
      call('HSET', state_key, 'recount', '0')
      return 'counted by the claims that follow'
    end)
  end

  local function has_key(packed, k)
    for _, each in ipairs(new_limits().keys_in(packed)) do
      if each == k then return true end
    end
    return false
  end

  -- One that counts as running for a key.
  function checks.running(_, _, k, member)
    if call('SISMEMBER', prefix .. 'running:' .. k, member) == 0 then return end
    local known = call('HMGET', prefix .. 'task:' .. member, 'state', 'limited')
    if known[1] == 'started' and known[2] and has_key(known[2], k) then return end
    wrong('does-not-run', 'running:' .. k, member .. ' counts for the limit, and does not run', function()
      call('SREM', prefix .. 'running:' .. k, member)
      call('ZADD', prefix .. 'held', 'XX', now, k)
      return 'not counted any more'
    end)
  end

  local function parts_of(member)
    local colon = string.find(member, ':', 1, true)
    return string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
  end

  -- A place in hand, from those of its key.
  function checks.let_in(_, _, k, member)
    if not call('ZSCORE', prefix .. 'let-in:' .. k, member) then return end
    local user, id = parts_of(member)
    local packed = call('HGET', prefix .. 'offers:' .. user, id)
    if packed and has_key(packed, k) then return end
    wrong('no-offer', 'offers:' .. user, 'a place of ' .. k .. ' is kept for ' .. member .. ', which does not know it', function()
      call('ZREM', prefix .. 'let-in:' .. k, member)
      call('SREM', prefix .. 'kept:' .. k, member)
      call('ZADD', prefix .. 'held', 'XX', now, k)
      return 'others may have it'
    end)
  end

  function checks.kept(_, _, k, member)
    if call('SISMEMBER', prefix .. 'kept:' .. k, member) == 0 or call('ZSCORE', prefix .. 'let-in:' .. k, member) then return end
    wrong('offer-without-task', 'kept:' .. k, member .. ' has no such place', function()
      call('SREM', prefix .. 'kept:' .. k, member)
      return 'removed'
    end)
  end

  -- One that is held by its name, from the line of the name. (From all of its user's: see lib/check_tasks.lua.)
  function checks.held(user, id, name)
    local line = place_key('held', user) .. ':' .. name
    local score = call('ZSCORE', line, id)
    if not score or call('ZSCORE', place_key('held', user), id) then return end
    wrong('held-for-nobody', 'held:' .. user .. ':' .. name, 'is not among those of its user', function()
      local is_here = call('HGET', task_key(user, id), 'held') == name
      if is_here then call('ZADD', place_key('held', user), score, id) else call('ZREM', line, id) end
      return is_here and 'listed' or 'removed'
    end)
  end

  -- A user and a name of which it has held tasks, as one of the two lists says.
  function checks.holding(user, _, name)
    local has = call('EXISTS', place_key('held', user) .. ':' .. name) == 1
    local users = prefix .. 'held-users:' .. name
    local is_listed, is_looked_at = call('ZSCORE', users, user), call('ZSCORE', prefix .. 'held', name)
    if has and not (is_listed and is_looked_at) then
      wrong('not-let-in', is_listed and 'held' or 'held-users:' .. name, 'nobody lets its held tasks in', function()
        call('ZADD', users, 'NX', now_us, user)
        call('ZADD', prefix .. 'held', 'NX', now, name)
        return 'let in by turns again'
      end)
    elseif has and new_limits().may_be_many(name) and not call('ZSCORE', prefix .. 'held-keys:' .. user, name) then
      wrong('not-let-in', 'held-keys:' .. user, name .. ' is looked at behind those of all others', function()
        new_limits().note_key(user, name)
        return 'by its turn'
      end)
    elseif is_listed and not has then
      wrong('held-without-tasks', 'held-users:' .. name, 'has no held tasks of that name', function()
        call('ZREM', users, user)
        if call('EXISTS', users) == 0 then call('ZREM', prefix .. 'held', name) end
        return 'removed'
      end)
    end
  end

  function checks.held_key(user, _, name)
    if call('ZSCORE', prefix .. 'held-users:' .. name, user) or not call('ZSCORE', prefix .. 'held-keys:' .. user, name) then
      return
    end
    wrong('held-without-tasks', 'held-keys:' .. user, name .. ' holds nothing of it', function()
      take_moment(prefix .. 'held-turns', prefix .. 'held-keys:' .. user, user, name)
      return 'removed'
    end)
  end

  function checks.held_name(_, _, name)
    if not call('ZSCORE', prefix .. 'held', name) or call('EXISTS', prefix .. 'held-users:' .. name) == 1 then return end
    wrong('held-without-tasks', 'held', name .. ' holds nobody', function()
      call('ZREM', prefix .. 'held', name)
      return 'removed'
    end)
  end

  -- A key whose places others may have, or that waits for some, and of which nobody tells them. In a queue with partitions.
  function checks.loan(_, _, k)
    local loans = new_loans()
    if not loans.is_divided or new_limits().may_be_of_one(k) then return end
    local key = prefix .. 'exchanges'
    if call('ZSCORE', key, k) then return end
    local is_waited_for = call('EXISTS', prefix .. 'held-users:' .. k) == 1
    local l = new_limits().limit(k)
    local can_start = l and not l.paused and not l.uncounted
    local lacks_room = is_waited_for and can_start and new_limits().room(l) < 1
    local is_stranded
    if loans.is_home(k) then -- of what is lent and used, whoever has it gives some back
      local ledger = loans.ledger(k)
      local is_free = can_start and l.most and l.most - ledger.lent > new_limits().used(k)
      local waits = false -- who asked before the limit changed asks again
      for _, row in pairs(ledger.rows) do waits = waits or (l and row.need > 0 and row.changed == l.changed) end
      is_stranded = ledger.rate_waits > 0 or (is_free and (waits or lacks_room))
    else
      local loan = loans.loan(k)
      is_stranded = lacks_room or loan.granted - loan.returned > new_limits().used(k)
    end
    if not is_stranded then return end
    wrong('stranded-places', 'exchanges', 'places of ' .. k .. ' are wanted or not used, and nobody moves them', function()
      call('ZADD', key, now, k)
      return 'moved by the next worker'
    end)
  end

  function checks.exchange(_, _, k)
    if new_loans().is_divided or not call('ZSCORE', prefix .. 'exchanges', k) then return end
    wrong('stranded-places', 'exchanges', k .. ' is limited in this queue alone', function()
      call('ZREM', prefix .. 'exchanges', k)
      return 'removed'
    end)
  end

  -- Places that a task has in hand.
  function checks.offer(user, id)
    local packed = call('HGET', prefix .. 'offers:' .. user, id)
    if not packed then return end
    local known = call('HMGET', task_key(user, id), 'lane', 'held')
    if not (known[2] or known[1] and call('ZSCORE', place_key(known[1], user), id)) then
      return wrong('offer-without-task', 'offers:' .. user, 'the task does not wait in its lane', function()
        new_limits().drop(user, id)
        return 'others may have its places'
      end)
    end
    for _, k in ipairs(new_limits().keys_in(packed)) do
      if not call('ZSCORE', prefix .. 'let-in:' .. k, user .. ':' .. id) then
        wrong('no-offer', 'let-in:' .. k, 'the place of ' .. id .. ' could be given to others', function()
          call('ZADD', prefix .. 'let-in:' .. k, now, user .. ':' .. id)
          return 'kept for it'
        end)
      end
    end
  end
end

-- Dependencies. `needs` of a deferred task holds what it waits for, `feeds` of a task those that wait for it; the two
-- mirror each other. A task that somebody waits for has the field `feeds`, so that the others pay nothing at their end.
--@include base
--@include state
--@include canceled
--@include place
--@include wake

local function new_links()
  local it = {}

  local STEP, TURN = 500, 50 -- tasks that one call passes outcomes on to, and of one user at a time while others wait

  function it.wait_for(user, id, dependency)
    call('SADD', needs_key(user, id), dependency)
    call('SADD', feeds_key(user, dependency), id)
    call('HSET', task_key(user, dependency), 'feeds', 1)
  end

  local function stop_waiting_for(user, id, dependency)
    local feeds, informed = feeds_key(user, dependency), informed_key(user, dependency)
    call('SREM', feeds, id)
    call('SREM', informed, id)
    if call('EXISTS', feeds, informed) == 0 then call('HDEL', task_key(user, dependency), 'feeds') end
  end

  -- What it waits for. Reads each key that its leaving writes, so that one of another type shows before.
  local function needs_to_leave(user, id)
    local needs = call('SMEMBERS', needs_key(user, id))
    for _, dependency in ipairs(needs) do
      call('SINTERCARD', 2, feeds_key(user, dependency), informed_key(user, dependency), 'LIMIT', 1)
      call('HLEN', task_key(user, dependency))
    end
    call('SCARD', place_key('deferred', user))
    return needs
  end

  function it.leave_deferred(user, id)
    local needs = needs_to_leave(user, id)
    for _, dependency in ipairs(needs) do stop_waiting_for(user, id, dependency) end
    call('DEL', needs_key(user, id))
    call('SREM', place_key('deferred', user), id)
    count('deferred', -1)
  end

  -- From its place among the deferred ones, which it leaves first, to that where it goes on.
  local released = {}
  local function release(user, id, known, step_us)
    local key, due = task_key(user, id), tonumber(known[4] or 0)
    fair().know(user)
    call('SREM', place_key('deferred', user), id)
    count('deferred', -1)
    if due > now then
      schedule(user, id, due)
      call('HSET', key, 'state', 'scheduled')
    else
      local lane, score = score_of(tonumber(known[3] or 3), step_us)
      call('ZADD', place_key(lane, user), score, id)
      count(lane, 1)
      call('HSET', key, 'state', 'queued', 'queued', now)
      if admit(user, cost_of_task(user, id)) then released[user] = (released[user] or 0) + 1 end
    end
    if known[5] then publish(user, id, 'waiting') end
  end

  -- One dependent learns how one of its dependencies ended. True: it goes on waiting for the same.
  local function inform(user, id, dependency, outcome, step_us, ttl)
    local known = call('HMGET', task_key(user, id), 'state', 'on_failure', 'priority', 'due', 'watched')
    if known[1] ~= 'deferred' then return false end
    if outcome == 'finished' or known[2] == 'run' then
      call('SREM', needs_key(user, id), dependency)
      if call('EXISTS', needs_key(user, id)) == 0 then release(user, id, known, step_us) end
    elseif known[2] == 'cancel' then
      it.leave_deferred(user, id)
      end_canceled(user, id, 'dependency ' .. dependency .. ' ' .. outcome, ttl)
    else
      return true
    end
    return false
  end

  -- How the task stands now: it may have been requeued since the announcement was put off.
  local function standing_outcome(user, id, outcome)
    local letter = call('GETRANGE', result_key(user, id), 9, 9)
    if letter == 'F' then return 'finished' end
    if letter == 'X' then return 'failed' end
    if letter == 'C' then return 'canceled' end
    if call('EXISTS', body_key(user, id)) == 1 then return nil end
    return outcome
  end

  -- Those that go on waiting are held apart until all have been informed. When the task lives again, they are joined by
  -- those that have not been informed.
  local function end_announcement(user, id)
    local feeds, informed = feeds_key(user, id), informed_key(user, id)
    if call('EXISTS', informed) == 1 then
      call('SUNIONSTORE', feeds, feeds, informed)
      call('DEL', informed)
    end
    if call('EXISTS', feeds) == 1 then
      call('HSET', task_key(user, id), 'feeds', 1)
    else
      call('HDEL', task_key(user, id), 'feeds')
    end
  end

  -- A set has no order of its own: those who came first go on first, among as many as one call informs.
  local function in_order(user, ids)
    local came = {}
    for _, id in ipairs(ids) do came[id] = tonumber(call('HGET', task_key(user, id), 'came') or 0) end
    table.sort(ids, function(one, other) return came[one] < came[other] end)
    return ids
  end

  -- Informs at most `most` dependents of one task; returns how many, and whether that was all.
  local function pass_on(user, id, told, most, step_us, ttl)
    local outcome = standing_outcome(user, id, told)
    local feeds = feeds_key(user, id)
    if not outcome then
      end_announcement(user, id)
      return 1, true
    end
    local dependents = in_order(user, call('SRANDMEMBER', feeds, most))
    local done = 0
    local function tell_all()
      for at, dependent in ipairs(dependents) do
        if inform(user, dependent, id, outcome, step_us, ttl) then call('SADD', informed_key(user, id), dependent) end
        done = at
      end
    end
    local is_done, failure = pcall(tell_all)
    if done > 0 then call('SREM', feeds, unpack(dependents, 1, done)) end
    if not is_done then
      damage().leave_deferred(user, dependents[done + 1], id)
      error(failure, 0)
    end
    local all = call('EXISTS', feeds) == 0
    if all then end_announcement(user, id) end
    return #dependents + 1, all
  end

  -- announcements      zset  users with some that were put off → their last turn, in us
  -- announcements:<u>  list  {id, outcome}, the oldest first
  local turns_key = prefix .. 'announcements'
  local function line_of(user) return turns_key .. ':' .. user end

  local function put_off(user, id, outcome)
    call('RPUSH', line_of(user), cmsgpack.pack({ id, outcome }))
    call('ZADD', turns_key, 'NX', now_us, user)
    count('announcements', 1)
  end

  local function are_put_off() return tonumber(has_announcements or 0) + (counts.announcements or 0) > 0 end

  -- The oldest one of the user whose turn it is, or a part of it. Returns how many it informed.
  local turn = 0
  local function take_turn_of(user, has_others, budget, step_us, ttl)
    local line, most = line_of(user), has_others and math.min(budget, TURN) or budget
    local packed = call('LINDEX', line, 0)
    local informed, all = 1, false
    if packed then
      local oldest = cmsgpack.unpack(packed)
      informed, all = pass_on(user, oldest[1], oldest[2], most, step_us, ttl)
    end
    if all then
      call('LPOP', line)
      count('announcements', -1)
    end
    turn = turn + 1
    if call('EXISTS', line) == 1 then call('ZADD', turns_key, now_us + turn, user) else call('ZREM', turns_key, user) end
    return informed
  end

  local function take_turn(budget, step_us, ttl)
    local users = call('ZRANGE', turns_key, 0, 1)
    local user = users[1]
    if not user then return budget end -- the key was lost
    local is_done, informed = pcall(take_turn_of, user, users[2], budget, step_us, ttl)
    if is_done then return informed end
    damage().note(user, informed)
    call('ZREM', turns_key, user)
    return 1
  end

  -- What this call caused is told at once, as long as nothing was put off; what is put off, by turns of users.
  function it.pass_on_outcomes(step_us, ttl)
    local budget, at, failure = STEP, 1, nil
    while announcements[at] and budget > 0 and not are_put_off() do
      local user, id, outcome = unpack(announcements[at])
      local is_done, informed, all = pcall(pass_on, user, id, outcome, budget, step_us, ttl)
      if not is_done then
        failure = { user = user, of = informed }
        break
      end
      budget = budget - informed
      if not all then break end
      at = at + 1
    end
    local function put_off_others()
      for left = at, #announcements do put_off(unpack(announcements[left])) end
      at = #announcements + 1
    end
    put_off_others()
    if failure then damage().note(failure.user, failure.of) end
    while budget > 0 and are_put_off() do
      budget = budget - take_turn(budget, step_us, ttl)
      put_off_others()
    end
    if are_put_off() then wake_from(prefix .. 'waiting', 1) end
    for user, tasks in pairs(released) do wake(user, tasks) end
  end

  return it
end

local links
local function depend()
  links = links or new_links()
  return links
end

-- What an earlier call put off, and what this one caused: one step of it in each call.
local is_passed_on = false
local function pass_on_outcomes(step_us, ttl)
  if is_passed_on then return end
  is_passed_on = true
  if announcements[1] or tonumber(has_announcements or 0) > 0 then depend().pass_on_outcomes(step_us, ttl) end
end

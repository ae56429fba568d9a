-- Dependencies. `needs` of a deferred task holds what it waits for, `feeds` of a task those that wait for it; the two
-- mirror each other. A task that somebody waits for has the field `feeds`, so that the others pay nothing at their end.
--@include base
--@include state
--@include canceled
--@include place
--@include wake

local function new_links()
  local it = {}

  local STEP = 500 -- tasks that one call passes an outcome on to

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

  function it.leave_deferred(user, id)
    call('SREM', place_key('deferred', user), id)
    count('deferred', -1)
    for _, dependency in ipairs(call('SMEMBERS', needs_key(user, id))) do stop_waiting_for(user, id, dependency) end
    call('DEL', needs_key(user, id))
  end

  local released = {}
  local function release(user, id, step_us)
    local key = task_key(user, id)
    call('SREM', place_key('deferred', user), id)
    count('deferred', -1)
    local known = call('HMGET', key, 'priority', 'due', 'watched')
    local due = tonumber(known[2] or 0)
    if due > now then
      call('HSET', key, 'state', 'scheduled')
      schedule(user, id, due)
    else
      local lane, score = score_of(tonumber(known[1] or 3), step_us)
      call('HSET', key, 'state', 'queued', 'queued', now)
      place(user, id, lane, score)
    end
    if known[3] then publish(user, id, 'waiting') end
    released[user] = (released[user] or 0) + 1
  end

  -- One dependent learns how one of its dependencies ended. True: it goes on waiting for the same.
  local function inform(user, id, dependency, outcome, step_us, ttl)
    local known = call('HMGET', task_key(user, id), 'state', 'on_failure')
    if known[1] ~= 'deferred' then return false end
    if outcome == 'finished' or known[2] == 'run' then
      call('SREM', needs_key(user, id), dependency)
      if call('EXISTS', needs_key(user, id)) == 0 then release(user, id, step_us) end
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
  local function pass_on(announcement, most, step_us, ttl)
    local user, id = announcement[1], announcement[2]
    local outcome = standing_outcome(user, id, announcement[3])
    local feeds = feeds_key(user, id)
    if not outcome then
      end_announcement(user, id)
      return 1, true
    end
    local dependents = in_order(user, call('SPOP', feeds, most))
    for _, dependent in ipairs(dependents) do
      if inform(user, dependent, id, outcome, step_us, ttl) then call('SADD', informed_key(user, id), dependent) end
    end
    local all = call('EXISTS', feeds) == 0
    if all then end_announcement(user, id) end
    return #dependents + 1, all
  end

  -- What an earlier call put off comes first, then what this one caused; the rest is put off to the next.
  function it.pass_on_outcomes(step_us, ttl)
    local put_off = prefix .. 'announcements'
    local budget = STEP
    for _ = 1, tonumber(has_announcements or 0) do
      if #announcements >= STEP then break end
      local packed = call('LPOP', put_off)
      if not packed then break end
      count('announcements', -1)
      table.insert(announcements, 1, cmsgpack.unpack(packed))
    end
    local at = 1
    while announcements[at] and budget > 0 do
      local informed, all = pass_on(announcements[at], budget, step_us, ttl)
      budget = budget - informed
      if all then at = at + 1 end
    end
    for left = at, #announcements do
      call('RPUSH', put_off, cmsgpack.pack(announcements[left]))
      count('announcements', 1)
    end
    if announcements[at] then wake_from(prefix .. 'waiting', 1) end
    for user, tasks in pairs(released) do wake(user, tasks) end
  end

  return it
end

local links
local function depend()
  links = links or new_links()
  return links
end

-- What an earlier call put off, and what this one caused.
local function pass_on_outcomes(step_us, ttl)
  if announcements[1] or tonumber(has_announcements or 0) > 0 then depend().pass_on_outcomes(step_us, ttl) end
end

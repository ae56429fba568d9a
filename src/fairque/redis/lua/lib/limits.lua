-- Limits per task name, over all users. `limited` is nil in a queue that has none. A task that must wait for its name is
-- held apart, so that it blocks nothing behind it, and comes back to its place in its lane when its turn has come.
-- limit:<name>        hash  max, rate_us, burst, tat
-- running:<name>      set   <u>:<id> of the deliveries that count
-- held                zset  names with held tasks → ms of the next look
-- held-users:<name>   zset  users with held tasks of that name → when they were last let in, in us
-- held:<u>            zset  held tasks of a user → their score
-- held:<u>:<name>     zset  the same, of one name
--@include base
--@include state
--@include message
--@include fair
--@include gcra

local function new_limits()
  local it, known, freed = {}, {}, {}
  local held_key = prefix .. 'held'
  local LOOK_MS, UNLIMITED = 1000, 100 -- a look even if nothing was freed; how many are let in when a limit is gone
  local function held_of(user, name) return place_key('held', user) .. ':' .. name end
  local function users_of(name) return prefix .. 'held-users:' .. name end
  local function running_of(name) return prefix .. 'running:' .. name end

  function it.of(name)
    local l = known[name]
    if l == nil then
      local f = call('HMGET', prefix .. 'limit:' .. name, 'max', 'rate_us', 'burst', 'tat')
      l = { name = name, max = tonumber(f[1]), rate_us = tonumber(f[2]), burst = tonumber(f[3]), tat = tonumber(f[4] or 0) }
      if not (l.max or l.rate_us) then l = false end
      known[name] = l
    end
    return l
  end

  -- How many of the name may start now.
  local function allowed(l)
    local most = l.max and l.max - call('SCARD', running_of(l.name)) or math.huge
    if l.rate_us then most = math.min(most, rate_allows(l.tat, l.rate_us, l.burst)) end
    return most
  end

  function it.must_wait(l, user, id)
    if allowed(l) < 1 then return true end
    return call('EXISTS', users_of(l.name)) == 1 and not call('HGET', task_key(user, id), 'offered')
  end

  local function next_look(l)
    if l and l.rate_us then
      local at = math.ceil(rate_opens_at(l.tat, l.rate_us, l.burst) / 1000)
      if at > now then return at end
    end
    return now + LOOK_MS
  end

  function it.start(l, user, id)
    call('SADD', running_of(l.name), user .. ':' .. id)
    if l.rate_us then
      l.tat = rate_after_start(l.tat, l.rate_us)
      call('HSET', prefix .. 'limit:' .. l.name, 'tat', l.tat)
      call('ZADD', held_key, 'XX', next_look(l), l.name)
    end
    call('HDEL', task_key(user, id), 'offered')
    call('HSET', task_key(user, id), 'limited', l.name)
  end

  -- The delivery of a task is over.
  function it.stop(name, user, id)
    if call('SREM', running_of(name), user .. ':' .. id) == 0 then return end
    if not freed[name] then freed[#freed + 1] = name end
    freed[name] = (freed[name] or 0) + 1
  end

  function it.hold(l, user, id, lane, score)
    local key = task_key(user, id)
    call('HDEL', key, 'offered')
    call('HSET', key, 'state', 'queued', 'lane', lane, 'score', score, 'held', l.name)
    call('ZADD', place_key('held', user), score, id)
    call('ZADD', held_of(user, l.name), score, id)
    call('ZADD', users_of(l.name), 'NX', now_us, user)
    call('ZADD', held_key, 'NX', next_look(l), l.name)
  end

  local function forget_user(name, user)
    if call('EXISTS', held_of(user, name)) == 1 then return end
    call('ZREM', users_of(name), user)
    if call('EXISTS', users_of(name)) == 0 then call('ZREM', held_key, name) end
  end

  -- It left Redis, or goes back to its lane.
  function it.unhold(user, id, name)
    call('ZREM', place_key('held', user), id)
    call('ZREM', held_of(user, name), id)
    call('HDEL', task_key(user, id), 'held')
    forget_user(name, user)
  end

  -- Lets the users in by turns.
  local function let_in(name, most, woken)
    for turn = 1, most do
      local user = call('ZRANGE', users_of(name), 0, 0)[1]
      if not user then break end
      call('ZADD', users_of(name), now_us + turn, user)
      local first = call('ZRANGE', held_of(user, name), 0, 0, 'WITHSCORES')
      local id, key = first[1], task_key(user, first[1])
      it.unhold(user, id, name)
      call('HSET', key, 'offered', 1)
      call('ZADD', place_key(call('HGET', key, 'lane'), user), first[2], id)
      if admit(user, cost_of_task(user, id)) then woken[user] = (woken[user] or 0) + 1 end
    end
  end

  local function look(name, most, woken)
    local l = it.of(name)
    local allows = l and allowed(l) or UNLIMITED
    if allows > 0 then let_in(name, math.min(allows, most), woken) end
    if call('ZSCORE', held_key, name) then call('ZADD', held_key, l and next_look(l) or now, name) end
  end

  -- As many as became free.
  function it.pass_on(woken)
    for _, name in ipairs(freed) do
      if call('ZSCORE', held_key, name) then look(name, freed[name], woken) end
    end
    freed = {}
  end

  function it.tick(woken)
    for _, name in ipairs(call('ZRANGEBYSCORE', held_key, '-inf', now, 'LIMIT', 0, 20)) do look(name, UNLIMITED, woken) end
  end

  function it.next_event() return tonumber(call('ZRANGE', held_key, 0, 0, 'WITHSCORES')[2] or math.huge) end

  return it
end
local limited = has_limits and new_limits() or nil

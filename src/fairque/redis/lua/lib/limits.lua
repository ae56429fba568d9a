-- Limits per task name, over all users. `limited` is nil in a queue that has none. A task that must wait for its name is
-- held apart, so that it blocks nothing behind it, and comes back to its place in its lane when its turn has come.
-- limit:<name>        hash  max, rate_us, burst, tat, tat_of; uncounted, while what ran before it is being counted
-- uncounted           set   names whose limits are uncounted; `recount` of `state` tells how far the count has come
-- running:<name>      set   <u>:<id> of the deliveries that count
-- held                zset  names with held tasks → ms of the next look
-- held-users:<name>   zset  users with held tasks of that name → when they were last let in, in us, or may be again
-- offers:<u>          set   tasks of a user that were let in and have not started: each may use a place of its name
-- held:<u>            zset  held tasks of a user → their score
-- held:<u>:<name>     zset  the same, of one name
--@include base
--@include state
--@include message
--@include fair
--@include gcra
--@include moments

local function new_limits()
  local it, known, freed = {}, {}, {}
  local held_key = prefix .. 'held'
  local LOOK_MS, UNLIMITED = 1000, 100 -- a look even if nothing was freed; how many are let in when a limit is gone
  local NAMES, USERS = 200, 20 -- looked at in one call; of one name, beyond those that are let in
  local LANES = 50 -- counted in one call
  local function held_of(user, name) return place_key('held', user) .. ':' .. name end
  local function users_of(name) return prefix .. 'held-users:' .. name end
  local function running_of(name) return prefix .. 'running:' .. name end
  local function offers_of(user) return prefix .. 'offers:' .. user end

  function it.of(name)
    local l = known[name]
    if l == nil then
      local f = call('HMGET', prefix .. 'limit:' .. name, 'max', 'rate_us', 'burst', 'tat', 'tat_of', 'uncounted')
      l = { name = name, max = tonumber(f[1]), rate_us = tonumber(f[2]), burst = tonumber(f[3]), uncounted = f[6] }
      l.tat = rate_tat(f[4], f[5], l.rate_us)
      if not (l.max or l.rate_us) then l = false end
      known[name] = l
    end
    return l
  end

  -- How many of the name may start now.
  local function allowed(l)
    if l.uncounted then return 0 end
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
      call('HSET', prefix .. 'limit:' .. l.name, 'tat', l.tat, 'tat_of', l.rate_us)
      local at = next_look(l)
      if call('ZADD', held_key, 'XX', 'CH', at, l.name) == 1 then note_moment(at, user) end
    end
    call('HSET', task_key(user, id), 'limited', l.name)
    return it.end_offer(user, id)
  end

  -- Whether there was one.
  function it.end_offer(user, id)
    if call('HDEL', task_key(user, id), 'offered') == 0 then return false end
    call('SREM', offers_of(user), id)
    return true
  end

  local function free(name, places)
    if not freed[name] then freed[#freed + 1] = name end
    freed[name] = (freed[name] or 0) + places
  end

  -- The delivery of a task is over.
  function it.stop(name, user, id)
    if call('SREM', running_of(name), user .. ':' .. id) == 0 then return end
    free(name, 1)
  end

  -- Where a place is free, those before it cannot use it: they are looked at again.
  function it.hold(l, user, id, lane, score)
    local key = task_key(user, id)
    it.end_offer(user, id)
    if allowed(l) >= 1 then free(l.name, 1) end
    call('HSET', key, 'state', 'queued', 'lane', lane, 'score', score, 'held', l.name)
    call('ZADD', place_key('held', user), score, id)
    call('ZADD', held_of(user, l.name), score, id)
    call('ZADD', users_of(l.name), 'NX', now_us, user)
    local at = next_look(l)
    if call('ZADD', held_key, 'NX', at, l.name) == 1 then note_moment(at, user) end
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

  local function others_wait(name, user)
    local first = call('ZRANGE', users_of(name), 0, 1)
    return first[2] or (first[1] and first[1] ~= user)
  end

  -- The user cannot, or does not, use the places that it was offered: others may. Returns whether it had any.
  local without = {}
  function it.take_back(user)
    if without[user] then return false end
    local ids = call('SMEMBERS', offers_of(user))
    without[user] = #ids == 0
    for _, id in ipairs(ids) do
      local of_task = call('HMGET', task_key(user, id), 'lane', 'offered')
      local lane, l = of_task[1], of_task[2] and it.of(of_task[2])
      local score = lane and call('ZSCORE', place_key(lane, user), id)
      if not score then
        call('SREM', offers_of(user), id)
      elseif l and others_wait(l.name, user) then
        call('ZREM', place_key(lane, user), id)
        it.hold(l, user, id, lane, score)
      end
    end
    return #ids > 0
  end

  -- The user may have become able to use a place.
  function it.came_back(user)
    local id = call('ZRANGE', place_key('held', user), 0, 0)[1]
    local name = id and call('HGET', task_key(user, id), 'held')
    if name then free(name, UNLIMITED) end
  end

  local function can_run(user) return not (governed and (governed.all_paused or governed.gate(governed.user(user)))) end

  local function offer(user, name, woken)
    local first = call('ZRANGE', held_of(user, name), 0, 0, 'WITHSCORES')
    local id, key = first[1], task_key(user, first[1])
    it.unhold(user, id, name)
    call('HSET', key, 'offered', name)
    call('SADD', offers_of(user), id)
    without[user] = nil
    call('ZADD', place_key(call('HGET', key, 'lane'), user), first[2], id)
    if admit(user, cost_of_task(user, id)) then woken[user] = (woken[user] or 0) + 1 end
  end

  -- Lets the users in by turns. Those that cannot run now come after all others, for as long as a look lasts. Returns how
  -- many it let in, and whether there are users that it did not look at.
  local function let_in(name, most, woken)
    local given, passed, last = 0, {}, now_us + most + USERS
    for turn = 1, most + USERS do
      local first = call('ZRANGE', users_of(name), 0, 0, 'WITHSCORES')
      local user = first[1]
      if given == most or not user or passed[user] then return given, false end
      passed[user] = not can_run(user)
      if passed[user] then
        call('ZADD', users_of(name), last + turn + LOOK_MS * 1000, user)
      else
        call('ZADD', users_of(name), now_us + turn, user)
        offer(user, name, woken)
        given = given + 1
      end
    end
    return given, tonumber(call('ZRANGE', users_of(name), 0, 0, 'WITHSCORES')[2] or math.huge) <= last
  end

  -- Returns how many it let in.
  local function look(name, most, woken)
    local l = it.of(name)
    local places = l and allowed(l) or UNLIMITED
    local given, is_cut = 0, false
    if places > 0 then given, is_cut = let_in(name, math.min(places, most), woken) end
    local user = call('ZRANGE', users_of(name), 0, 0)[1]
    if not user then return given end
    is_cut = is_cut or not l or (given == most and given < places)
    local at = is_cut and now or next_look(l)
    call('ZADD', held_key, at, name)
    note_moment(at, user)
    return given
  end

  -- As many as became free. Returns whether any was let in.
  function it.pass_on(woken)
    local names, given = freed, 0
    freed = {}
    for _, name in ipairs(names) do
      if call('ZSCORE', held_key, name) then given = given + look(name, math.min(names[name], UNLIMITED), woken) end
    end
    return given > 0
  end

  local function count_lane(member)
    local colon = string.find(member, ':', 1, true)
    local lane, user = string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
    for _, entry in ipairs(call('XRANGE', stream_key(lane, user), '-', '+')) do
      local id = entry[2][2]
      local l = it.of(name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD)))
      if l and l.uncounted then
        call('SADD', running_of(l.name), user .. ':' .. id)
        call('HSET', task_key(user, id), 'limited', l.name)
      end
    end
  end

  -- What ran before its name had a limit: some lanes at each claim, as that is rare.
  local is_counting = false
  local function count_running()
    local cursor = call('HGET', state_key, 'recount')
    if not cursor then return end
    local page = call('ZSCAN', leases_key, cursor, 'COUNT', LANES)
    for at = 1, #page[2], 2 do count_lane(page[2][at]) end
    is_counting = page[1] ~= '0'
    if is_counting then
      call('HSET', state_key, 'recount', page[1])
      return
    end
    for _, name in ipairs(call('SMEMBERS', prefix .. 'uncounted')) do
      call('HDEL', prefix .. 'limit:' .. name, 'uncounted')
      call('ZADD', held_key, 'XX', now, name)
    end
    call('DEL', prefix .. 'uncounted')
    call('HDEL', state_key, 'recount')
    known = {}
  end

  -- Whether there is more to count.
  function it.is_counting() return is_counting end

  -- The names that are due share alike what one call lets in.
  function it.tick(woken)
    count_running()
    local names = call('ZRANGEBYSCORE', held_key, '-inf', now, 'LIMIT', 0, NAMES)
    local most = math.max(1, math.floor(UNLIMITED / #names))
    for _, name in ipairs(names) do look(name, most, woken) end
  end

  return it
end
local limited = has_limits and new_limits() or nil
if limited then on_held_back, on_reviewed = limited.take_back, limited.came_back end

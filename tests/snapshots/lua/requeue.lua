#!lua
-- Bring dead letters back, all or nothing: attempts start anew, the history of errors stays.
-- KEYS[1]  state
-- Returns  per id: 1 requeued, 0 it is not a dead letter; or, when nothing was written: {'full', user, ms until there may
--          be room}
-- Cost     O(ids log backlog)

-- lib/base.lua
-- The queue's keys and its clock. Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash
-- tag.
local call = redis.call
local prefix = string.sub(KEYS[1], 1, -6)
local state_key = KEYS[1]
local ready_key = prefix .. 'ready'
local due_key = prefix .. 'due'
local leases_key = prefix .. 'leases'
local users_key = prefix .. 'users'
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew

-- A user hash nobody touched for this long is forgotten (its policy is a key of its own and stays).
local USER_TTL = 604800000

local function user_key(user) return prefix .. 'user:' .. user end
local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

local function publish(user, id, event) call('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end

-- lib/state.lua
-- What the queue keeps of itself: read once, and written back by save_state().

local of_queue = call('HMGET', state_key, 'clock', 'arrival', 'policies', 'limited', 'cursors', 'announcements',
  'limits', 'mean', 'keeper')
local clock, arrival = tonumber(of_queue[1] or 0), tonumber(of_queue[2] or 0)
local has_policies, has_limited, has_cursors = of_queue[3], of_queue[4], tonumber(of_queue[5] or 0) > 0
local has_announcements, has_limits, keeper_known = of_queue[6], of_queue[7], of_queue[9] or ''
local mean = tonumber(of_queue[8] or 0) -- see lib/ready.lua
local saved_clock, saved_arrival, saved_mean = clock, arrival, mean

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
local function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- Totals of the queue.
local counts = {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end

local save_tallies = nil -- a function in scripts that measure users: lib/metrics.lua
local tell_of_moments = nil -- a function in scripts that set moments: lib/moments.lua
local function save_state()
  if save_tallies then save_tallies() end
  if tell_of_moments then tell_of_moments() end
  if clock ~= saved_clock or arrival ~= saved_arrival or mean ~= saved_mean then
    call('HSET', state_key, 'clock', clock, 'arrival', arrival, 'mean', mean)
  end
  for field, by in pairs(counts) do
    if by ~= 0 then call('HINCRBY', state_key, field, by) end
  end
end

-- lib/task.lua
-- What goes when a task goes.

-- All that is kept of a task itself, apart from its result and from what waits for what.
local function keys_of_task(user, id) return task_key(user, id), body_key(user, id), errors_key(user, id) end

-- Nothing is left of a task that waits nowhere. Those that wait for it go on waiting, for the next task of this id.
-- Returns whether there are any.
local function erase_task(user, id)
  local key = task_key(user, id)
  local known = call('HMGET', key, 'feeds', 'offered')
  local feeds = known[1]
  if known[2] then call('SREM', prefix .. 'offers:' .. user, id) end
  call('DEL', result_key(user, id), needs_key(user, id), keys_of_task(user, id))
  if feeds then call('HSET', key, 'feeds', 1) end
  return feeds
end

-- A task is no dead letter any more.
local function unlist_dead(user, id)
  call('ZREM', place_key('dead', user), id)
  call('ZREM', prefix .. 'dead', user .. ':' .. id)
end

-- lib/fair.lua
-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996).

-- lib/ready.lua
-- Lines: sets of those that are ready, with their tags, and hashes that keep the tags of those that are not.

-- The mean of what services took the members of a line further lately; 0 before the first.
local MEAN_OVER = 32
-- Mean services that one may be owed that was held at its cap, and above the lowest tag to which debts are cut: those
-- that were not made in turn, when their cause is gone; and all, so that tags keep their digits.
local CREDIT, HORIZON, LARGEST_DEBT = 4, 8, 2 ^ 20
local function mean_after(of_line, step)
  if step <= 0 then return of_line end
  return of_line > 0 and of_line + (step - of_line) / MEAN_OVER or step
end

-- `at` where nobody is ready, but for the member that is not meant.
local function lowest_tag(key, at, but)
  local found = call('ZRANGE', key, 0, but and 1 or 0, 'WITHSCORES')
  local score = found[1] == but and found[4] or found[2]
  return score and tonumber(score) or at
end

-- Into a line: at its clock, but not below the lowest tag, and at most half a service above it: its own or the mean.
-- Less than a whole one, so that nobody is served twice before a newcomer; more than nothing, so that newcomers, however
-- many there are, cannot keep the others from becoming the lowest. Never below the tag it left with, but for one that
-- was held at its cap, which gets some of what it is owed. Returns the tag.
-- A sorted set of up to 128 members is a list, in which each change reads the fractions of all the others; one long
-- member turns it into a skip list for as long as it lives.
local LONG_MEMBER = string.rep('-', 65)
local function enter(key, member, own, at, service, of_line, capped)
  local lowest = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if not lowest[2] then call('ZADD', key, 0, LONG_MEMBER) end
  local first = tonumber(lowest[2] or at)
  local entry = first
  if capped then
    entry = first - CREDIT * of_line
  elseif lowest[2] then
    if of_line > 0 then service = math.min(service, of_line) end
    entry = math.max(first, math.min(at, first + service / 2))
  end
  local tag = math.max(own, entry)
  call('ZADD', key, tag, member)
  if not lowest[2] then call('ZREM', key, LONG_MEMBER) end
  return tag
end

-- A tag moves, wherever it is; nothing is made of one that is nowhere, unless there is a number to begin with.
local function move_tag(key, member, hash, change, begin)
  local ready = call('ZSCORE', key, member)
  local tag = ready or call('HGET', hash, 'tag') or begin
  if not tag then return end
  tag = change(tonumber(tag))
  if ready then return call('ZADD', key, tag, member) end
  call('HSET', hash, 'tag', tag)
  call('PEXPIRE', hash, USER_TTL)
end

-- What became known of a service after its start, in shares of the member.
local function move_late(key, member, hash, by, at, of_line)
  move_tag(key, member, hash, function(tag)
    if by <= 0 or of_line == 0 then return tag + by end
    return tag + math.max(0, math.min(by, lowest_tag(key, at) + LARGEST_DEBT * of_line - tag))
  end, 0)
end

-- A weight changed: how far a member is ahead of the lowest is worth so much more, or less.
local function rescale(key, member, hash, factor, at)
  move_tag(key, member, hash, function(tag)
    local low = lowest_tag(key, at)
    return tag > low and low + (tag - low) * factor or tag
  end)
end

-- What a member was served out of turn is held against it no longer, beyond the horizon.
local function forgive(key, member, hash, of_line)
  move_tag(key, member, hash, function(tag) return math.min(tag, lowest_tag(key, tag, member) + HORIZON * of_line) end)
end

-- The lowest member and its tag, of those who do not rest.
local function lowest_in(key, resting)
  local lowest = call('ZRANGE', key, 0, resting.count, 'WITHSCORES')
  for at = 1, #lowest, 2 do
    if not resting.users[lowest[at]] then return lowest[at], tonumber(lowest[at + 1]) end
  end
end

-- lib/govern.lua
-- Policies: who may be served, how much at once, in which group. `governed` is nil in a queue that has none, which then
-- pays for one closure. A policy is a msgpack map in `policy:<u>`; what it does not say comes from `policy:*`, and a
-- group's own is in `policy:@<group>`.
-- ready:<group>  zset  users of the group → tag; in `ready` stands '@<group>' for all of them
-- group:<group>  hash  tag, clock and mean of its line
-- reserved       zset  users that are ready and below their min_running → tag
-- parked         zset  users with a backlog that are held back → ms at which they may go on by themselves, inf where that
--                      takes an event; '*' → the end of the pause of everybody

-- lib/message.lua
-- What scripts read of the body of a task. A body that cannot be read belongs to somebody else.

local LONGEST_HEAD = 600 -- of a body, with a name of 512 bytes

-- The name of a task, '' where the body cannot be read.
local function name_in(body)
  local ok, _, name = pcall(cmsgpack.unpack_one, body, 19)
  return ok and type(name) == 'string' and name or ''
end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

local function cost_of_task(user, id)
  local head = redis.pcall('GETRANGE', body_key(user, id), 0, 17)
  return type(head) == 'string' and cost_of(head) or 1
end

-- lib/gcra.lua
-- Rates, by GCRA (as in ATM, ITU-T I.371): a theoretical arrival time, `tat`, runs ahead of the clock by less than the
-- burst. All in us; `interval` is the time between two starts at the rate itself. A `tat` counts for the interval that it
-- was counted with, `tat_of`: a rate that is changed begins anew.

local function rate_tat(tat, tat_of, interval) return tonumber(tat_of or 0) == interval and tonumber(tat) or 0 end

local function rate_opens_at(tat, interval, burst) return tat - (burst - 1) * interval end

-- How many may start now.
local function rate_allows(tat, interval, burst)
  return math.min(burst, math.floor((now_us - rate_opens_at(tat, interval, burst)) / interval) + 1)
end

-- The `tat` after one more start.
local function rate_after_start(tat, interval) return math.max(now_us, tat) + interval end

-- lib/metrics_format.lua
-- What is measured of a user, in `metrics:<u>`, and of the whole queue, in `metrics:*`: 15 doubles and the histogram of
-- waits. One string that is read and written as a whole: a third of the time that as many hash fields take.
--  1 finished   2 failed  3 canceled  4 retried (totals)   5 cost   6 busy (seconds)
--  7 recent cost   8 recent busy   9 recent services   10 when those three were written   11 since when all is measured
-- 12 the hour   13 its services   14 its cost   15 its busy seconds
local WAITS, WAIT_BUCKETS = 15, 22 -- bucket k holds waits below 2^k ms, the last one all others
local RECENT_MS = 60000 -- what is recent fades with this time constant

local function metrics_format() return '<' .. string.rep('d', WAITS) .. string.rep('I4', WAIT_BUCKETS) end

-- lib/moments.lua
-- What becomes possible by time alone. One idle worker, the keeper, sleeps until the next moment, and a second one for a
-- little longer, should the keeper be gone by then; the others sleep on. `keeper` in the state is the moment it knows and
-- its name, `second` a name. See lib/keeper.lua as well.

-- lib/wake.lua
-- Tell at most `tasks` idle workers that `user` has work, or all that serve everyone, and not the one that calls. A worker
-- whose message nobody received is gone: the next is told.

local function reaches(worker) return call('PUBLISH', prefix .. 'wake:' .. worker, '') > 0 end

local function tell_all_workers()
  for _, worker in ipairs(call('ZRANGE', prefix .. 'workers', 0, -1)) do reaches(worker) end
end

local function wake_from(set, tasks, except)
  while tasks > 0 do
    local worker = call('SPOP', set)
    if not worker then break end
    if worker ~= except and reaches(worker) then tasks = tasks - 1 end
  end
  return tasks
end

local function wake(user, tasks, except)
  if has_limited and user then tasks = wake_from(prefix .. 'waiting:' .. user, tasks, except) end
  if tasks > 0 then wake_from(prefix .. 'waiting', tasks, except) end
end

local SECOND_MS = 50

-- A moment that is sooner than the one the keeper knows is told to one worker, when the script ends.
local soonest, soonest_user = math.huge, nil
local function note_moment(at, user)
  if at < soonest then soonest, soonest_user = at, user end
end

-- What the keeper knows, and its name; nothing when it did not look at its moment.
local function moment_kept()
  local at, keeper = string.match(keeper_known, '^(%d+) (.*)$')
  if at and at + SECOND_MS >= now then return tonumber(at), keeper end
end

function tell_of_moments()
  if soonest == math.huge then return end
  local at, keeper = moment_kept()
  if at and (at <= soonest or reaches(keeper)) then return end
  wake(soonest_user, 1)
end

-- lib/policies.lua
-- A queue without policies is served without looking for any; one that is being swept is not there yet.

local function forget_policies_if_none()
  local left = call('HMGET', state_key, 'policies', 'sweep')
  if left[1] == '0' and not left[2] then
    call('HDEL', state_key, 'policies')
    call('UNLINK', prefix .. 'reserved') -- by a default that was taken back
  end
end

-- Called with a user: functions in scripts that know limits of names (lib/limits.lua).
local on_held_back, on_reviewed = nil, nil

local function new_government()
  local it, known = {}, {}
  local parked_key, reserved_key = prefix .. 'parked', prefix .. 'reserved'
  local NEVER = math.huge -- until an event opens the gate: a task ends, the policy changes

  local function read(name)
    local packed = call('GET', prefix .. 'policy:' .. name)
    return packed and cmsgpack.unpack(packed) or {}
  end
  local default = read('*')
  local inherited = { __index = default }

  -- The pause of everybody is a flag that claims read: nobody leaves `ready` for it. True, or until when.
  it.all_paused = (default.paused == true or (default.paused or 0) > now) and default.paused

  -- Whoever is busy leaves now and then, which gives the hash more time.
  local function keep(key, ...)
    if call('HSET', key, ...) > 0 then call('PEXPIRE', key, USER_TTL) end
  end

  function it.user(user)
    local u = known[user]
    if not u then
      local policy = setmetatable(read(user), inherited)
      local group = policy.group
      u = { name = user, policy = policy, group = group, weight = policy.weight or 1, ready_key = ready_key }
      if group then
        u.ready_key, u.group_key, u.member = prefix .. 'ready:' .. group, prefix .. 'group:' .. group, '@' .. group
        u.group_weight = read(u.member).weight or 1
      end
      known[user] = u
    end
    return u
  end

  -- What happened in this script is read anew.
  function it.forget(user) known[user] = nil end

  function it.running(u)
    u.running = u.running or call('XLEN', stream_key('critical', u.name)) + call('XLEN', stream_key('normal', u.name))
    return u.running
  end

  local function read_marks(u)
    if u.tat then return end
    local marks = call('HMGET', user_key(u.name), 'tat', 'tat_of', 'open_until')
    u.tat, u.open_until = rate_tat(marks[1], marks[2], u.policy.rate_us), tonumber(marks[3] or 0)
  end

  -- When the user may be served: nil is now, else ms, or NEVER.
  function it.gate(u)
    local p, most = u.policy, u.policy.max_running
    local paused = rawget(p, 'paused')
    if paused == true then return NEVER end
    if paused and paused > now then return paused end
    if p.breaker_failures or p.rate_us then read_marks(u) end
    if p.breaker_failures and u.open_until > 0 then
      if u.open_until > now then return u.open_until end
      most = 1 -- half open: one task at a time shows whether it works again
    end
    if most and it.running(u) >= most then return NEVER end
    if p.rate_us then
      local at = rate_opens_at(u.tat, p.rate_us, p.rate_burst)
      if at > now_us then return math.ceil(at / 1000) end
    end
    return nil
  end

  -- A task of the user was delivered.
  function it.note_start(u)
    if u.running then u.running = u.running + 1 end
    local rate = u.policy.rate_us
    if not rate then return end
    read_marks(u)
    u.tat = rate_after_start(u.tat, rate)
    keep(user_key(u.name), 'tat', u.tat, 'tat_of', rate)
  end

  function it.tag(u)
    local tag = call('ZSCORE', u.ready_key, u.name)
    return tag and tonumber(tag)
  end

  -- Also of those whose reservation came from a default that has been taken back.
  local has_reserved
  local function unreserve(u)
    if u.reserved == nil then
      if has_reserved == nil then has_reserved = call('EXISTS', reserved_key) == 1 end
      u.reserved = has_reserved
    end
    if u.reserved then call('ZREM', reserved_key, u.name) end
    u.reserved = false
  end

  -- One slot of all workers is never reserved. Where they have not told how many there are, nothing is known of it.
  local most_reserved
  local function reserve(u, tag)
    local least = u.policy.min_running
    if least and not most_reserved then
      local slots = tonumber(call('HGET', state_key, 'slots') or 0)
      most_reserved = slots > 0 and slots - 1 or NEVER
    end
    if not least or it.running(u) >= math.min(least, most_reserved) then return unreserve(u) end
    call('ZADD', reserved_key, tag, u.name)
    u.reserved = true
  end

  -- Of the line in which the user stands: its clock and its mean.
  local function line_of(u)
    if not u.group then return clock, mean end
    local of_group = call('HMGET', u.group_key, 'clock', 'mean')
    return tonumber(of_group[1] or 0), tonumber(of_group[2] or 0)
  end

  local function join(u, cost)
    local kept = call('HMGET', user_key(u.name), 'tag', 'capped')
    if kept[2] then call('HDEL', user_key(u.name), 'capped') end
    local at, of_line = line_of(u)
    if u.group and not call('ZSCORE', ready_key, u.member) then
      local own = tonumber(call('HGET', u.group_key, 'tag') or 0)
      enter(ready_key, u.member, own, clock, cost / u.group_weight, mean)
    end
    reserve(u, enter(u.ready_key, u.name, tonumber(kept[1] or 0), at, cost / u.weight, of_line, kept[2]))
    call('ZADD', users_key, now, u.name)
  end

  -- The last user of a group takes the group along. What comes into an empty line next begins where this one ended.
  local function leave_group(u, tag)
    local of_group = tonumber(call('ZSCORE', ready_key, u.member) or 0)
    local at = math.max(tag, tonumber(call('HGET', u.group_key, 'clock') or 0))
    call('HSET', u.group_key, 'tag', of_group, 'clock', at)
    call('PEXPIRE', u.group_key, USER_TTL)
    call('ZREM', ready_key, u.member)
    return of_group
  end

  -- `capped`: it has work, and as much of it runs as may.
  function it.leave(u, capped)
    local tag = it.tag(u)
    if not tag then return end
    call('ZREM', u.ready_key, u.name)
    call('HSET', user_key(u.name), 'tag', tag)
    if capped then call('HSET', user_key(u.name), 'capped', 1) end
    call('PEXPIRE', user_key(u.name), USER_TTL)
    unreserve(u)
    if u.group then
      if call('EXISTS', u.ready_key) == 1 then return end
      tag = leave_group(u, tag)
    end
    if call('EXISTS', ready_key) == 0 then clock = math.max(clock, tag) end
  end

  local function park(u, at)
    local p = u.policy
    -- Only a change of its own policy lets it go on, or the end of one of its tasks: the defaults do not matter.
    local is_own = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
    if at == NEVER and is_own then return end
    call('ZADD', parked_key, at, u.name)
    note_moment(at, u.name)
  end

  function it.hold_back(u, at)
    it.leave(u, at == NEVER and rawget(u.policy, 'paused') ~= true)
    park(u, at)
    if on_held_back then on_held_back(u.name) end
  end

  function it.admit(user, cost)
    local u = it.user(user)
    if it.tag(u) then return not it.all_paused end
    local at = it.gate(u)
    if not at then
      join(u, cost)
      return not it.all_paused
    end
    park(u, at)
    call('ZADD', users_key, now, user)
    return false
  end

  -- One service of a user that is ready: its own tag moves, and the tag and the clock of what it stands in.
  -- The tags are those that `lowest` found, if it did.
  function it.charge(u, cost, tag, group_tag)
    tag = tag or it.tag(u)
    if u.group then
      group_tag = group_tag or tonumber(call('ZSCORE', ready_key, u.member))
      clock = math.max(clock + cost / call('ZCARD', ready_key), group_tag)
      mean = mean_after(mean, cost / u.group_weight)
      call('ZADD', ready_key, group_tag + cost / u.group_weight, u.member)
      local at, of_line = line_of(u)
      at = math.max(at + cost / call('ZCARD', u.ready_key), tag)
      keep(u.group_key, 'clock', at, 'mean', mean_after(of_line, cost / u.weight))
    else
      clock = math.max(clock + cost / call('ZCARD', ready_key), tag)
      mean = mean_after(mean, cost / u.weight)
    end
    tag = tag + cost / u.weight
    call('ZADD', u.ready_key, tag, u.name)
    reserve(u, tag)
  end

  local function head_cost(user)
    local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
    return id and cost_of_task(user, id)
  end

  -- Puts the user where it belongs after something changed. True: it may be served now, and could not before.
  function it.review(user)
    it.forget(user)
    if on_reviewed then on_reviewed(user) end
    call('ZREM', parked_key, user)
    local u = it.user(user)
    local cost, tag = head_cost(user), it.tag(u)
    local at = cost and it.gate(u)
    if tag and at then it.hold_back(u, at) end
    if tag and not cost then it.leave(u) end
    if not cost then call('HDEL', user_key(user), 'capped') end
    if tag and cost and not at then reserve(u, tag) end
    if tag or not cost then return false end
    return it.admit(user, cost)
  end

  -- Those whose time has come.
  function it.unpark(most, woken)
    for _, user in ipairs(call('ZRANGEBYSCORE', parked_key, '-inf', now, 'LIMIT', 0, most)) do
      if user == '*' then
        call('ZREM', parked_key, user)
        tell_all_workers()
      elseif it.review(user) then
        woken[user] = (woken[user] or 0) + 1
      end
    end
  end

  -- A task of the user ended. One that is ready stays so, unless its breaker opened. Returns as `review` does.
  function it.freed(user)
    local u = it.user(user)
    local tag = not u.opened and it.tag(u)
    if not tag then return it.review(user) end
    reserve(u, tag)
    return false
  end

  function it.unpark_one(user) call('ZREM', parked_key, user) end

  -- The user whose turn it is, with its tag and its group's: reservations first, else the lowest, and of a group its
  -- lowest. `resting`: users, and how many, that it is not.
  function it.lowest(resting)
    local reserved, reserved_tag = lowest_in(reserved_key, resting)
    if reserved then return reserved, reserved_tag end
    -- As many members as rest may have nobody else.
    local members = call('ZRANGE', ready_key, 0, resting.count, 'WITHSCORES')
    for at = 1, #members, 2 do
      local member, tag = members[at], tonumber(members[at + 1])
      if string.byte(member) == 64 then
        local inner, inner_tag = lowest_in(prefix .. 'ready:' .. string.sub(member, 2), resting)
        if inner then return inner, inner_tag, tag end
      elseif not resting.users[member] then
        return member, tag
      end
    end
  end

  -- The same among the users named, by their place in the list.
  function it.lowest_of(users, resting)
    local best, best_key
    for _, user in ipairs(users) do
      local u = it.user(user)
      local tag = not resting.users[user] and it.tag(u)
      if tag then
        local key
        if call('ZSCORE', reserved_key, user) then
          key = { 0, tag, user, tag, user }
        else
          key = { 1, u.group and tonumber(call('ZSCORE', ready_key, u.member)) or tag, u.member or user, tag, user }
        end
        local at = 1
        while best_key and at < 5 and key[at] == best_key[at] do at = at + 1 end
        if not best_key or key[at] < best_key[at] then best, best_key = user, key end
      end
    end
    return best
  end

  local function refresh(u)
    local tag = call('ZSCORE', reserved_key, u.name) and it.tag(u)
    if tag then call('ZADD', reserved_key, tag, u.name) end
  end

  -- What became known while it ran is charged, or given back, afterwards.
  function it.adjust(u, by)
    local at, of_line = line_of(u)
    if u.group then move_late(ready_key, u.member, u.group_key, by / u.group_weight, clock, mean) end
    move_late(u.ready_key, u.name, user_key(u.name), by / u.weight, at, of_line)
    refresh(u)
  end

  -- The user's weight was another one.
  function it.reweight(u, before)
    rescale(u.ready_key, u.name, user_key(u.name), before / u.weight, (line_of(u)))
    refresh(u)
  end

  function it.reweight_group(member, before)
    local weight = read(member).weight or 1
    rescale(ready_key, member, prefix .. 'group:' .. string.sub(member, 2), before / weight, clock)
  end

  -- Whoever served it out of turn does so no longer.
  function it.forgive(u)
    local _, of_line = line_of(u)
    forgive(u.ready_key, u.name, user_key(u.name), of_line)
    refresh(u)
  end

  -- The breaker of a user opens after so many failures within a window; when its time is over, one success closes it.
  function it.note_end(u, ok)
    local p, key = u.policy, user_key(u.name)
    if not p.breaker_failures then return end
    u.tat = nil -- marks are read anew
    local marks = call('HMGET', key, 'open_until', 'fails', 'fails_since')
    local open_until, fails, since = tonumber(marks[1] or 0), tonumber(marks[2] or 0), tonumber(marks[3] or 0)
    if open_until > now then return end -- a straggler from before
    if open_until > 0 and ok then
      call('HDEL', key, 'open_until', 'fails', 'fails_since')
      return
    end
    if ok then return end
    if now - since > p.breaker_window then fails, since = 0, now end
    fails = fails + 1
    if open_until > 0 or fails >= p.breaker_failures then
      u.opened = true
      keep(key, 'open_until', now + p.breaker_cooldown, 'fails', 0, 'trips', (call('HGET', key, 'trips') or 0) + 1)
    else
      keep(key, 'fails', fails, 'fails_since', since)
    end
  end

  function it.ends_matter(u)
    local p = u.policy
    return p.max_running or p.min_running or p.breaker_failures
  end

  function it.waiting(user)
    return call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user)) +
      call('ZCARD', place_key('scheduled', user)) + call('SCARD', place_key('deferred', user)) +
      call('ZCARD', place_key('held', user))
  end

  -- Whether tasks in line may go for those that are asked for, and so many would fit beside what is not in line.
  function it.may_drop(user, asked)
    local p = it.user(user).policy
    local in_line = call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user))
    return p.mode == 'drop_oldest' and it.waiting(user) - in_line + asked <= p.max_queued
  end

  -- How many tasks are too many, when so many more come.
  function it.excess(user, more)
    local most = it.user(user).policy.max_queued
    return most and math.max(0, it.waiting(user) + more - most) or 0
  end

  -- Seconds (as ms) in which the user's tasks, as fast as they went lately, make room for so many.
  function it.retry_after(user, excess)
    local blob = call('GET', prefix .. 'metrics:' .. user)
    if not blob then return 1000 end
    local m = { struct.unpack(metrics_format(), blob) }
    local span = RECENT_MS * (1 - math.exp((m[11] - now) / RECENT_MS))
    local recent = m[9] * math.exp((m[10] - now) / RECENT_MS)
    if recent * 3600 < 1 then return 60000 end
    return math.max(100, math.min(3600000, math.ceil(excess * span / recent)))
  end

  return it
end
local governed = has_policies and new_government() or nil

-- The user has servable work, of which the first task costs this much. False: a policy holds it back.
local function admit(user, cost)
  if governed then return governed.admit(user, cost) end
  if call('ZSCORE', ready_key, user) then return true end
  local kept = call('HMGET', user_key(user), 'tag', 'capped')
  if kept[2] then call('HDEL', user_key(user), 'capped') end
  enter(ready_key, user, tonumber(kept[1] or 0), clock, cost, mean, kept[2])
  call('ZADD', users_key, now, user)
  return true
end

-- The last servable task of a user was taken: its tag is kept outside `ready`. What comes into an empty line next begins
-- where this one ended. `others`: whether anybody else is ready, where that is known.
local function leave(user, tag, others)
  if governed then return governed.leave(governed.user(user)) end
  call('ZREM', ready_key, user)
  call('HSET', user_key(user), 'tag', tag)
  call('PEXPIRE', user_key(user), USER_TTL)
  if others == nil then others = call('EXISTS', ready_key) == 1 end
  if not others then clock = math.max(clock, tag) end
end

-- What a service cost beyond what was charged at its start; less than nothing is given back.
local function adjust(user, by)
  if governed then return governed.adjust(governed.user(user), by) end
  move_late(ready_key, user, user_key(user), by, clock, mean)
end

-- A task was taken out of a lane of the user.
local function retire(user)
  if call('EXISTS', place_key('critical', user), place_key('normal', user)) > 0 then return end
  if governed then governed.unpark_one(user) end
  call('HDEL', user_key(user), 'capped') -- nothing waits that its cap kept from running
  local tag = call('ZSCORE', governed and governed.user(user).ready_key or ready_key, user)
  if tag then leave(user, tonumber(tag)) end
end

-- lib/place.lua
-- Where a task waits: in a lane, or among the scheduled ones of its user.

local function score_of(priority, step_us)
  if priority == 6 then return 'critical', next_arrival() end
  return 'normal', next_arrival() - (priority - 1) * step_us
end

-- True: the user may be served now.
local function place(user, id, lane, score)
  call('ZADD', place_key(lane, user), score, id)
  count(lane, 1)
  return admit(user, cost_of_task(user, id))
end

-- Those that are due in one millisecond stand in the order in which they came, by fractions of it: what reads a score as
-- a time rounds it down. A step is the smallest that a time in ms can carry until 2109; behind 2,048 of them ids decide.
local STEP_MS = 2 ^ -11
local function place_in_ms(waiting, at)
  local last = call('ZREVRANGEBYSCORE', waiting, '(' .. string.format('%d', at + 1), at, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  return last and math.min(last + STEP_MS, at + 1 - STEP_MS) or at
end

-- `due` knows of each user only its earliest task, so that one user's schedule costs the others nothing.
local function schedule(user, id, at)
  local waiting = place_key('scheduled', user)
  call('ZADD', waiting, place_in_ms(waiting, at), id)
  call('ZADD', due_key, 'LT', at, user)
  call('ZADD', users_key, now, user)
  note_moment(at, user)
  count('scheduled', 1)
end

-- lib/once.lua
-- A call that is repeated because its reply was cut is answered as the first time. `nonce` names the call.

local ANSWER_TTL = 60000

local function answered(nonce)
  local packed = call('GET', prefix .. 'answer:' .. nonce)
  return packed and cmsgpack.unpack(packed)
end

local function answer(nonce, value)
  call('SET', prefix .. 'answer:' .. nonce, cmsgpack.pack(value), 'PX', ANSWER_TTL)
  return value
end
-- ARGV[1] is the msgpack of Requeue: nonce: str, user: str, priority_step_ms: int, ids: Sequence[str]
local args = cmsgpack.unpack(ARGV[1])
local nonce, user, priority_step_ms, ids = args[1], args[2], args[3], args[4]
local before = answered(nonce)
if before then return before end
local requeued, answers = 0, {}

-- The head of its body, or nil when it is no dead letter.
local function letter(id)
  local body = call('GETRANGE', body_key(user, id), 0, 17)
  return body ~= '' and call('HGET', task_key(user, id), 'state') == 'failed' and body or nil
end

-- Nothing is dropped for a task that failed.
local function over_quota()
  local more, seen = 0, {}
  for _, id in ipairs(ids) do
    if not seen[id] and letter(id) then more = more + 1 end
    seen[id] = true
  end
  local excess = more > 0 and governed.excess(user, more) or 0
  return excess > 0 and { 'full', user, governed.retry_after(user, excess) } or nil
end

local function requeue(id)
  local key, body = task_key(user, id), letter(id)
  if not body then return 0 end
  local lane, score = score_of(string.byte(body, 18) or 3, priority_step_ms * 1000)
  call('DEL', result_key(user, id))
  unlist_dead(user, id)
  for _, kept in ipairs({ keys_of_task(user, id) }) do call('PERSIST', kept) end
  call('HDEL', key, 'attempt', 'failures', 'lost', 'returned', 'since', 'ended', 'canceling', 'charged', 'progress',
    'message')
  call('HSET', key, 'state', 'queued', 'queued', now)
  place(user, id, lane, score)
  publish(user, id, 'waiting')
  requeued = requeued + 1
  return 1
end

local refused = governed and over_quota()
if refused then return refused end
for at, id in ipairs(ids) do answers[at] = requeue(id) end
if requeued > 0 then wake(user, requeued) end
save_state()
return answer(nonce, answers)

#!lua flags=allow-oom
-- Report how deliveries ended.
-- KEYS[1]  state
-- Returns  per outcome: 1 done (also by an earlier try of the same call), 0 refused: another worker has the task
-- Cost     O(outcomes)

-- lib/settle.lua
-- How deliveries ended. `report` is a `Settle`; returns the reply of settle.lua.

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

-- lib/metrics.lua
-- Measures users; what a script measured is written by its save_state().

-- lib/metrics_format.lua
-- What is measured of a user, in `metrics:<u>`, and of the whole queue, in `metrics:*`: 15 doubles and the histogram of
-- waits. One string that is read and written as a whole: a third of the time that as many hash fields take.
--  1 finished   2 failed  3 canceled  4 retried (totals)   5 cost   6 busy (seconds)
--  7 recent cost   8 recent busy   9 recent services   10 when those three were written   11 since when all is measured
-- 12 the hour   13 its services   14 its cost   15 its busy seconds
local WAITS, WAIT_BUCKETS = 15, 22 -- bucket k holds waits below 2^k ms, the last one all others
local RECENT_MS = 60000 -- what is recent fades with this time constant

local function metrics_format() return '<' .. string.rep('d', WAITS) .. string.rep('I4', WAIT_BUCKETS) end

local TALLIED = { finished = 1, failed = 2, canceled = 3, retried = 4 }
local tallies = {}

local function tallies_of(user)
  local of_user = tallies[user]
  if not of_user then
    of_user = {}
    tallies[user] = of_user
  end
  return of_user
end

-- A task of the user ended, or is tried again.
local function tally(user, how)
  local of_user, at = tallies_of(user), TALLIED[how]
  of_user[at] = (of_user[at] or 0) + 1
end

-- One service: how long it waited (nil: known already) and ran, in ms, and what it cost.
local function tally_service(user, wait, run, cost)
  local of_user = tallies_of(user)
  of_user[5], of_user[6] = (of_user[5] or 0) + cost, (of_user[6] or 0) + run / 1000
  of_user[9] = (of_user[9] or 0) + 1
  if wait then
    local bucket = wait < 1 and 0 or math.min(WAIT_BUCKETS - 1, math.floor(math.log(wait) / math.log(2)) + 1)
    local at = WAITS + 1 + bucket
    of_user[at] = (of_user[at] or 0) + 1
  end
end

save_tallies = function()
  if not next(tallies) then return end
  -- An hour that is over goes to the day's hash, from which bills are written.
  local USAGE_TTL, HOUR = 3456000000, 3600000 -- 40 days: an hour lies here or in a day's hash, until nobody bills it
  local format = metrics_format()
  local function close_hour(user, m)
    if m[13] == 0 and m[14] == 0 and m[15] == 0 then return end
    local key = prefix .. 'usage:' .. user .. ':' .. string.format('%d', math.floor(m[12] / 24))
    local hour, before = string.format('%d', m[12] % 24), { 0, 0, 0 }
    local kept = call('HGET', key, hour) -- the clock of the server was set back over the end of an hour
    if kept then before = cmsgpack.unpack(kept) end
    call('HSET', key, hour, cmsgpack.pack({ m[13] + before[1], m[14] + before[2], m[15] + before[3] }))
    call('PEXPIRE', key, USAGE_TTL)
  end
  local function save(user, by)
    local key = prefix .. 'metrics:' .. user
    local blob, hour, m = call('GET', key), math.floor(now / HOUR), nil
    if blob then
      m = { struct.unpack(format, blob) }
    else
      m = {}
      for at = 1, WAITS + WAIT_BUCKETS do m[at] = 0 end
      m[10], m[11] = now, now
    end
    if m[12] ~= hour then -- new ones come here as well: once an hour the key is given more time
      close_hour(user, m)
      m[12], m[13], m[14], m[15] = hour, 0, 0, 0
      call('SET', key, '', 'PX', USAGE_TTL)
    end
    local fade = math.exp((m[10] - now) / RECENT_MS)
    m[7], m[8] = m[7] * fade + (by[5] or 0), m[8] * fade + (by[6] or 0)
    m[9], m[10] = m[9] * fade, now
    m[13], m[14], m[15] = m[13] + (by[9] or 0), m[14] + (by[5] or 0), m[15] + (by[6] or 0)
    for at, more in pairs(by) do m[at] = m[at] + more end
    call('SETRANGE', key, 0, struct.pack(format, unpack(m, 1, WAITS + WAIT_BUCKETS)))
  end
  local whole = {}
  for user, by in pairs(tallies) do
    save(user, by)
    for at, more in pairs(by) do whole[at] = (whole[at] or 0) + more end
  end
  for how, at in pairs(TALLIED) do
    if whole[at] then count(how, whole[at]) end
  end
  save('*', whole)
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

-- lib/cursor.lua

-- Where a look at the silent deliveries of a lane stopped half way.
local function forget_cursor(member)
  if call('HDEL', state_key, 'cursor:' .. member) == 1 then count('cursors', -1) end
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

-- lib/limits.lua
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

-- lib/canceled.lua
-- Outcomes that others wait for, passed on at the end of the script (lib/depend.lua).

local announcements = {}
local function announce(user, id, outcome)
  announcements[#announcements + 1] = { user, id, outcome }
end

-- The end of a task that did not run to its end: a record that says so, and nothing else is left of it. Closures cost
-- every call of a script: these are made by the first that needs them.
local function new_ending()
  -- The fields of message.Record, after the first nine bytes of the body and the letter of the state. What did not run
  -- started and ended now.
  local function canceled_record(body, known, reason)
    local ran = known.state == 'started'
    local started = ran and tonumber(known.started) or now
    return string.sub(body, 1, 9) .. 'C\156' .. cmsgpack.pack(name_in(body), tonumber(known.attempt or 0),
      tonumber(known.queued or known.enqueued or started), started, now - started, ran and known.worker or '', nil, true,
      nil, 'TaskCanceled', reason, '')
  end

  local function fields_of(key)
    local flat, known = call('HGETALL', key), {}
    for at = 1, #flat, 2 do known[flat[at]] = flat[at + 1] end
    return known
  end

  -- The task has left its place already. `ttl`: how long the record is kept, in ms.
  return function(user, id, reason, ttl)
    local known = fields_of(task_key(user, id))
    local body = call('GET', body_key(user, id)) or string.rep('\0', 9)
    if erase_task(user, id) then announce(user, id, 'canceled') end
    call('SET', result_key(user, id), canceled_record(body, known, reason), 'PX', ttl)
    tally(user, 'canceled')
    publish(user, id, 'canceled')
  end
end

local ending
local function end_canceled(user, id, reason, ttl)
  ending = ending or new_ending()
  ending(user, id, reason, ttl)
end

-- lib/depend.lua
-- Dependencies. `needs` of a deferred task holds what it waits for, `feeds` of a task those that wait for it; the two
-- mirror each other. A task that somebody waits for has the field `feeds`, so that the others pay nothing at their end.

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
      if place(user, id, lane, score) then released[user] = (released[user] or 0) + 1 end
    end
    if known[3] then publish(user, id, 'waiting') end
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
  local function pass_on(user, id, told, most, step_us, ttl)
    local outcome = standing_outcome(user, id, told)
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
  local function take_turn(budget, step_us, ttl)
    local users = call('ZRANGE', turns_key, 0, 1)
    local user = users[1]
    if not user then return budget end -- the key was lost
    local line, most = line_of(user), users[2] and math.min(budget, TURN) or budget
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

  -- What this call caused is told at once, as long as nothing was put off; what is put off, by turns of users.
  function it.pass_on_outcomes(step_us, ttl)
    local budget, at = STEP, 1
    while announcements[at] and budget > 0 and not are_put_off() do
      local user, id, outcome = unpack(announcements[at])
      local informed, all = pass_on(user, id, outcome, budget, step_us, ttl)
      budget = budget - informed
      if not all then break end
      at = at + 1
    end
    local function put_off_others()
      for left = at, #announcements do put_off(unpack(announcements[left])) end
      at = #announcements + 1
    end
    put_off_others()
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

-- What an earlier call put off, and what this one caused.
local function pass_on_outcomes(step_us, ttl)
  if announcements[1] or tonumber(has_announcements or 0) > 0 then depend().pass_on_outcomes(step_us, ttl) end
end

-- lib/xcom.lua
-- Values that the tasks of a user share. `user` and `namespace` come percent-encoded; a key and a value are any bytes.
-- xcom          hash  key → expiry in ms as a big-endian double, then the value
-- xcom-expiry   zset  key → expiry in ms: what has expired is found without a scan
-- xcom-spaces   zset  namespace → ms at which its last value expires: all that a user has is found without a scan
-- Each of them expires by itself, not before the last value that it tells of.

local function new_xcom()
  local it = {}
  local XCOM_SWEEP = 16

  local function names(user, namespace)
    local of = user .. ':' .. namespace
    return prefix .. 'xcom:' .. of, prefix .. 'xcom-expiry:' .. of, prefix .. 'xcom-spaces:' .. user
  end

  local function outlive(key, expiry)
    if call('PEXPIRETIME', key) < expiry then call('PEXPIREAT', key, expiry) end
  end

  local function expired(key)
    return call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, XCOM_SWEEP)
  end

  function it.remove(user, namespace, keys)
    local values, expiries, spaces = names(user, namespace)
    call('HDEL', values, unpack(keys))
    call('ZREM', expiries, unpack(keys))
    if call('EXISTS', values) == 0 then call('ZREM', spaces, namespace) end
  end

  -- A few of those that have expired; the others go with the next calls, or with their key.
  function it.sweep(user, namespace)
    local _, expiries, spaces = names(user, namespace)
    local keys, namespaces = expired(expiries), expired(spaces)
    if #keys > 0 then it.remove(user, namespace, keys) end
    if #namespaces > 0 then call('ZREM', spaces, unpack(namespaces)) end
  end

  function it.push(user, namespace, key, value, ttl_ms)
    it.sweep(user, namespace)
    local values, expiries, spaces = names(user, namespace)
    local expiry = now + ttl_ms
    call('HSET', values, key, struct.pack('>d', expiry) .. value)
    call('ZADD', expiries, expiry, key)
    call('ZADD', spaces, 'GT', expiry, namespace)
    outlive(values, expiry)
    outlive(expiries, expiry)
    outlive(spaces, expiry)
  end

  -- Its value, or false.
  function it.pull(user, namespace, key)
    local stored = call('HGET', (names(user, namespace)), key)
    return stored and struct.unpack('>d', stored) > now and string.sub(stored, 9)
  end

  function it.clear(user, namespace)
    local values, expiries, spaces = names(user, namespace)
    call('UNLINK', values, expiries)
    call('ZREM', spaces, namespace)
  end

  function it.expiries(user, namespace)
    local _, expiries = names(user, namespace)
    return expiries
  end

  return it
end

local function settle_outcomes(report)
  local worker, dead_letter_ttl_ms, priority_step_ms, outcomes = report[1], report[2], report[3], report[4]
  local step_us = priority_step_ms * 1000
  local KEPT_ERRORS = 20
  local woken = {}

  -- The last delivery of a lane takes the stream with it.
  local function remove_delivery(lane, user, stream_id, ...)
    local stream = stream_key(lane, user)
    if call('XLEN', stream) == 1 then
      call('DEL', stream, ...)
      call('ZREM', leases_key, lane .. ':' .. user)
      if has_cursors then forget_cursor(lane .. ':' .. user) end
    else
      call('XACK', stream, 'workers', stream_id)
      call('XDEL', stream, stream_id)
      if ... then call('DEL', ...) end
    end
    count('started', -1)
    if governed then governed.user(user).running = nil end
  end

  local function keep_error(user, id, record)
    local key = errors_key(user, id)
    call('RPUSH', key, record)
    call('LTRIM', key, -KEPT_ERRORS, -1)
  end

  local ends = {}

  -- A result that others wait for is kept at least as long as they may have to.
  function ends.finished(user, id, lane, stream_id, _, ttl, _, record, _, feeds)
    remove_delivery(lane, user, stream_id, keys_of_task(user, id))
    if feeds then
      ttl = math.max(ttl, dead_letter_ttl_ms)
      announce(user, id, 'finished')
    end
    call('SET', result_key(user, id), record, 'PX', ttl)
    publish(user, id, 'finished')
  end

  function ends.canceled(user, id, lane, stream_id, _, _, _, _, reason)
    remove_delivery(lane, user, stream_id)
    end_canceled(user, id, reason, dead_letter_ttl_ms)
  end

  function ends.failed(user, id, lane, stream_id, _, ttl, _, record, error, feeds)
    remove_delivery(lane, user, stream_id)
    keep_error(user, id, error)
    local key = task_key(user, id)
    call('HSET', key, 'state', 'failed', 'stream_id', '', 'ended', now)
    call('PEXPIRE', key, dead_letter_ttl_ms)
    call('PEXPIRE', body_key(user, id), dead_letter_ttl_ms)
    call('PEXPIRE', errors_key(user, id), dead_letter_ttl_ms)
    call('SET', result_key(user, id), record, 'PX', ttl)
    local dead = place_key('dead', user)
    call('ZREMRANGEBYSCORE', dead, '-inf', now - dead_letter_ttl_ms)
    call('ZADD', dead, now, id)
    call('PEXPIRE', dead, dead_letter_ttl_ms)
    local all_dead = prefix .. 'dead'
    call('ZREMRANGEBYSCORE', all_dead, '-inf', now - dead_letter_ttl_ms)
    call('ZADD', all_dead, now, user .. ':' .. id)
    call('PEXPIRE', all_dead, dead_letter_ttl_ms)
    if feeds then announce(user, id, 'failed') end
    publish(user, id, 'failed')
  end

  -- Back to its place: at once, or when its time has come.
  local function put_back(user, id, lane, stream_id, attempt, delay)
    local key = task_key(user, id)
    remove_delivery(lane, user, stream_id)
    call('HSET', key, 'stream_id', '', 'last', stream_id .. ' ' .. attempt)
    if delay > 0 then
      call('HSET', key, 'state', 'scheduled')
      schedule(user, id, now + delay)
    else
      call('HSET', key, 'state', 'queued', 'queued', now)
      if place(user, id, lane, call('HGET', key, 'score')) then woken[user] = (woken[user] or 0) + 1 end
    end
    publish(user, id, 'waiting')
  end

  function ends.retry(user, id, lane, stream_id, attempt, _, delay, _, error)
    keep_error(user, id, error)
    local key = task_key(user, id)
    call('HINCRBY', key, 'failures', 1)
    call('HDEL', key, 'lost')
    put_back(user, id, lane, stream_id, attempt, delay)
  end

  function ends.released(user, id, lane, stream_id, attempt, _, delay)
    local key = task_key(user, id)
    call('HINCRBY', key, 'attempt', -1)
    if delay > 0 then
      call('HINCRBY', key, 'returned', 1)
      call('HSETNX', key, 'since', now)
    else
      call('HSET', key, 'paid', 1)
    end
    put_back(user, id, lane, stream_id, attempt, delay)
  end

  -- The record of a task that ended as canceled tells which worker's attempt that was.
  local function was_canceled(record, attempt)
    if not record or string.sub(record, 10, 10) ~= 'C' then return false end
    local fields = cmsgpack.unpack(string.sub(record, 11))
    return fields[2] == attempt and fields[6] == worker
  end

  -- The same outcome may arrive twice when the first reply was cut.
  local function already_done(user, id, stream_id, attempt, record)
    if call('HGET', task_key(user, id), 'last') == stream_id .. ' ' .. attempt then return true end
    local found = call('GET', result_key(user, id))
    if record ~= '' then return found == record end
    return was_canceled(found, attempt)
  end

  local function push(user, packed)
    local space, key, ttl = struct.unpack('>I4I4d', packed)
    local value_at = 17 + space + key
    new_xcom().push(user, string.sub(packed, 17, 16 + space), string.sub(packed, 17 + space, value_at - 1),
      string.sub(packed, value_at), ttl)
  end

  -- A task that was canceled while it ran is not tried again.
  local function settled_kind(kind, canceling)
    if canceling and (kind == 'retry' or kind == 'released') then return 'canceled' end
    return kind
  end

  -- Shares follow what was used: what was charged at the claim is corrected. Returns what the service cost in the end.
  local function correct(user, id, kind, cost, charge, run, charged)
    local total = cost + charge
    if charged then
      -- What did not run, as its worker died or nobody can run it, costs what it was thought to: nobody is served for nothing.
      total = (run > 0 and cost * run / 1000 or charged) + charge
      charge = total - charged
      if kind == 'retry' then call('HDEL', task_key(user, id), 'charged') end
    end
    if charge ~= 0 then adjust(user, charge) end
    return total
  end

  -- The mean of what tasks of a name took lately, as 'number mean'; '' stands for all names.
  local function learn(name, seconds)
    local key = prefix .. 'run-times'
    local n, took = string.match(call('HGET', key, name) or '0 0', '(.*) (.*)')
    n = math.min(n + 1, 32)
    call('HSET', key, name, string.format('%d %.9g', n, took + (seconds - took) / n))
    call('PEXPIRE', key, USER_TTL)
  end

  local COUNTED = { finished = 'finished', failed = 'failed', retry = 'retried' }
  local reviewed = {}
  local function account(user, id, kind, cost, charge, run, wait, charged)
    if kind == 'released' then return end
    local total = correct(user, id, kind, cost, charge, run, charged)
    if charged and run > 0 then
      local name = name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
      if name ~= '' then learn(name, run / 1000) end
      learn('', run / 1000)
    end
    tally_service(user, wait, run, total)
    if COUNTED[kind] then tally(user, COUNTED[kind]) end
    if governed and kind ~= 'canceled' then governed.note_end(governed.user(user), kind == 'finished') end
  end

  local answers = {}
  for at, outcome in ipairs(outcomes) do
    local lane, user, id, stream_id, attempt, kind, ttl_ms, delay_ms, record, error, pushed, cost, charge, run_ms, wait_ms
      =
      outcome[1], outcome[2], outcome[3], outcome[4], outcome[5], outcome[6], outcome[7], outcome[8], ARGV[outcome[9]] or
      '', ARGV[outcome[10]] or '', ARGV[outcome[11]] or '', outcome[12], outcome[13], outcome[14], outcome[15]
    local known = call('HMGET', task_key(user, id), 'stream_id', 'attempt', 'feeds', 'canceling', 'limited', 'charged')
    if known[1] == stream_id and tonumber(known[2]) == attempt then
      if pushed ~= '' then push(user, pushed) end
      local settled = settled_kind(kind, known[4])
      account(user, id, settled, cost, charge, run_ms, wait_ms, tonumber(known[6]))
      if known[5] then
        limited = limited or new_limits()
        limited.stop(known[5], user, id)
      end
      if governed and governed.ends_matter(governed.user(user)) and not reviewed[user] then
        reviewed[user] = true
        reviewed[#reviewed + 1] = user
      end
      local told = settled == 'canceled' and known[4] or error
      ends[settled](user, id, lane, stream_id, attempt, ttl_ms, delay_ms, record, told, known[3])
      answers[at] = 1
    else
      answers[at] = already_done(user, id, stream_id, attempt, record) and 1 or 0
    end
  end

  pass_on_outcomes(step_us, dead_letter_ttl_ms)
  for _, user in ipairs(reviewed) do
    if governed.freed(user) then woken[user] = (woken[user] or 0) + 1 end
  end
  if limited then limited.pass_on(woken) end
  for user, tasks in pairs(woken) do wake(user, tasks) end
  return answers
end
-- ARGV[1] is the msgpack of Settle: worker: str, dead_letter_ttl_ms: int, priority_step_ms: int, outcomes:
--   list[SettledDelivery]
-- SettledDelivery: lane: str, user: str, id: str, stream_id: str, attempt: int, kind: str, ttl_ms: int, delay_ms:
--   int, record: Value, error: Value, pushed: Value, cost: float, charge: float, run_ms: float, wait_ms: int | None
--   kind: finished, failed, canceled, retry, or released (not the task's fault: it keeps attempt and
--   place, and where it goes back at once its charge).
--   ttl_ms: how long the result record lives. delay_ms: wait before the retry or the return to the lane.
--   error: a record, or of what is canceled the reason. pushed: the lengths of namespace and key, the TTL in ms, then
--   namespace, key and value. cost: of the body. charge: what the task added while it ran. wait_ms: of a first attempt.
local args = cmsgpack.unpack(ARGV[1])
local worker, dead_letter_ttl_ms, priority_step_ms, outcomes = args[1], args[2], args[3], args[4]
local answers = settle_outcomes(args)
save_state()
return answers

#!lua
-- Promote what is due, steal from silent workers, then serve fairly.
-- KEYS[1]  state
-- Returns  {now, ms for which the worker may sleep or -1, then per delivery: user, id, lane, stream id, attempt, score,
--          history, body}. history: '' at the first delivery, else 'failures lost returned returned-since queued canceling'
-- Cost     O(wanted log users), plus O(1) per promoted and stolen task, both bounded

-- lib/claim.lua
-- Promote what is due, steal from silent workers, then serve fairly. `claim` is a `Claim`; returns the reply of claim.lua.

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

-- lib/depend.lua
-- Dependencies. `needs` of a deferred task holds what it waits for, `feeds` of a task those that wait for it; the two
-- mirror each other. A task that somebody waits for has the field `feeds`, so that the others pay nothing at their end.

-- lib/canceled.lua
-- Outcomes that others wait for, passed on at the end of the script (lib/depend.lua).

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

-- lib/place.lua
-- Where a task waits: in a lane, or among the scheduled ones of its user.

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

-- lib/sweep.lua
-- The policy of everybody changed. Who is ready is looked at when its turn comes; those who are held back with tasks, some
-- at each claim.
-- swept  zset  those of `parked` that are looked at anew

local function new_sweep()
  local it = {}
  local parked_key, swept_key = prefix .. 'parked', prefix .. 'swept'
  local SWEPT = 100 -- users per claim

  local function begin()
    if call('EXISTS', swept_key) == 1 then return call('HSET', state_key, 'sweep', 'again') end
    call('HSET', state_key, 'sweep', 1)
    if call('EXISTS', parked_key) == 1 then call('RENAME', parked_key, swept_key) end
  end

  local function park_pause(ends_at)
    call('ZADD', parked_key, ends_at, '*')
    note_moment(ends_at)
  end

  function it.change_default(was_paused)
    begin()
    call('ZREM', parked_key, '*')
    if governed.all_paused and governed.all_paused ~= true then park_pause(governed.all_paused) end
    if was_paused and not governed.all_paused then tell_all_workers() end
  end

  local function look_at_some(woken)
    local found = call('ZPOPMIN', swept_key, SWEPT)
    for at = 1, #found, 2 do
      local user = found[at]
      if user == '*' then
        if governed.all_paused == tonumber(found[at + 1]) then park_pause(governed.all_paused) end
      elseif governed.review(user) then
        woken[user] = 1
      end
    end
    return call('EXISTS', swept_key) == 1
  end

  -- True: there are more.
  function it.go_on(asked, woken)
    if look_at_some(woken) then return true end
    if asked == 'again' then
      begin()
      return true
    end
    call('HDEL', state_key, 'sweep')
    forget_policies_if_none()
    return false
  end

  return it
end

-- lib/work.lua
-- What one claim has done so far, and those whom it serves.

-- groups: users named, each in the first of its groups only; an empty group is everyone. served: the reply, eight values
-- each delivery. promoted: user → tasks that came back to its lanes. moved: steps that delivered nothing.
local function new_work(claim)
  local groups = claim[10]
  local it = { groups = {}, everyone = false, served = {}, delivered = 0, promoted = {}, moved = 0, is_swept = false }
  local named = {}
  for _, group in ipairs(groups) do
    local users = {}
    for _, user in ipairs(group) do
      if not named[user] then users[#users + 1] = user end
      named[user] = true
    end
    if #group == 0 then it.everyone = true end
    if #group == 0 or #users > 0 then it.groups[#it.groups + 1] = users end
  end

  function it.note(user, id, lane, stream_id, attempt, score, history, body)
    local n = #it.served
    it.served[n + 1], it.served[n + 2], it.served[n + 3], it.served[n + 4] = user, id, lane, stream_id
    it.served[n + 5], it.served[n + 6], it.served[n + 7], it.served[n + 8] = attempt, score, history, body
    it.delivered = it.delivered + 1
  end

  return it
end

-- lib/promotion.lua
-- What is due comes to its lane.

local function new_promotion(claim, work)
  local worker, want, priority_step_ms = claim[1], claim[2], claim[5]
  local it = {}
  local step_us = priority_step_ms * 1000
  local PROMOTIONS, LOOKS = 200, 20
  local SPARE = 10 -- of one user beyond what is wanted: other workers find something, too

  local function promote(user, most)
    local waiting = place_key('scheduled', user)
    local ids = call('ZRANGEBYSCORE', waiting, '-inf', '(' .. now + 1, 'LIMIT', 0, most)
    for _, id in ipairs(ids) do
      local key = task_key(user, id)
      local known = call('HMGET', key, 'lane', 'score', 'priority', 'watched')
      local lane, score = known[1], known[2]
      if not score then lane, score = score_of(tonumber(known[3] or 3), step_us) end
      call('HSET', key, 'state', 'queued', 'queued', now)
      place(user, id, lane, score)
      if known[4] then publish(user, id, 'waiting') end
    end
    if #ids > 0 then
      call('ZREM', waiting, unpack(ids))
      count('scheduled', -#ids)
      work.promoted[user] = (work.promoted[user] or 0) + #ids
    end
    local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
    if first then
      local at = math.max(now, math.floor(first))
      call('ZADD', due_key, at, user)
      note_moment(at, user)
    else
      call('ZREM', due_key, user)
    end
  end

  -- By turns: whoever has more that is due comes after all those that wait since before now.
  function it.promote_due()
    local users = call('ZRANGEBYSCORE', due_key, '-inf', now, 'LIMIT', 0, LOOKS)
    local most = math.min(want + SPARE, math.floor(PROMOTIONS / #users))
    for _, user in ipairs(users) do promote(user, most) end
  end

  -- What was promoted or let in again, and not taken by this call, is news for other workers.
  function it.announce()
    if governed and governed.all_paused then return end
    for user, tasks in pairs(work.promoted) do
      if call('ZSCORE', governed and governed.user(user).ready_key or ready_key, user) then wake(user, tasks, worker) end
    end
  end

  return it
end

-- lib/stealing.lua
-- Take over what silent workers have.

-- lib/cursor.lua

-- Where a look at the silent deliveries of a lane stopped half way.
local function forget_cursor(member)
  if call('HDEL', state_key, 'cursor:' .. member) == 1 then count('cursors', -1) end
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

-- lib/history.lua
-- What a delivery tells of what came before it.

local function history_of(failures, lost, returned, since, queued, canceling)
  return (failures or 0) .. ' ' .. (lost or 0) .. ' ' .. (returned or 0) .. ' ' .. (since or 0) .. ' ' .. (queued or 0) ..
    (canceling and ' 1' or ' 0')
end

-- A body that cannot be handed out is told of as such.
local function load_body(user, id, max_message_bytes)
  local body = redis.pcall('GET', body_key(user, id))
  if type(body) == 'table' then return '\0not a string' end
  if body and #body > max_message_bytes then
    return '\0too large: ' .. #body .. ' bytes, the limit is ' .. string.format('%d', max_message_bytes)
  end
  return body
end

local function new_stealing(claim, work)
  local worker, want, lease_ms, max_message_bytes = claim[1], claim[2], claim[3], claim[4]
  local it = {}
  local LOOKS = 20
  local LOOK_SHARE = 0.4 -- of a lease, between two looks at a lane: a lease and this are less than 1.5 leases, with room

  -- A delivery whose worker fell silent is ours now; (stream id, attempt) fences off the old owner.
  local function take_over(lane, user, stream_id, id)
    local key = task_key(user, id)
    local known = call('HMGET', key, 'stream_id', 'attempt', 'score', 'failures', 'lost', 'returned', 'since', 'queued',
      'worker', 'canceling', 'limited')
    local body = known[1] == stream_id and load_body(user, id, max_message_bytes)
    if not body then
      call('XACK', stream_key(lane, user), 'workers', stream_id)
      call('XDEL', stream_key(lane, user), stream_id)
      if known[11] then
        limited = limited or new_limits()
        limited.stop(known[11], user, id)
      end
      if known[1] == stream_id then call('DEL', keys_of_task(user, id)) end
      count('started', -1)
      return
    end
    local attempt, lost = known[2] + 1, (known[5] or 0) + 1
    call('HSET', key, 'attempt', attempt, 'lost', lost, 'worker', worker, 'started', now_text)
    work.note(user, id, lane, stream_id, attempt, known[3], history_of(known[4], lost, known[6], known[7], known[8], known[10]),
      body)
    local old = known[9]
    if old and old ~= worker then
      local stream = stream_key(lane, user)
      if #call('XPENDING', stream, 'workers', '-', '+', 1, old) == 0 then
        call('XGROUP', 'DELCONSUMER', stream, 'workers', old)
      end
    end
  end

  -- Workers come and go while a lane stays busy: forget the consumers of those that no longer report.
  local function forget_consumers(stream)
    if call('XINFO', 'GROUPS', stream)[1][4] <= call('ZCARD', prefix .. 'workers') + 1 then return end
    for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream, 'workers')) do
      if consumer[4] == 0 and not call('ZSCORE', prefix .. 'workers', consumer[2]) then
        call('XGROUP', 'DELCONSUMER', stream, 'workers', consumer[2])
      end
    end
  end

  local function steal_from(member, most)
    local colon = string.find(member, ':', 1, true)
    local lane, user = string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
    local stream, cursor_field = stream_key(lane, user), 'cursor:' .. member
    if call('EXISTS', stream) == 0 then
      call('ZREM', leases_key, member)
      forget_cursor(member)
      return
    end
    local cursor = call('HGET', state_key, cursor_field) or '0-0'
    local found = call('XAUTOCLAIM', stream, 'workers', worker, lease_ms, cursor, 'COUNT', most)
    for _, entry in ipairs(found[2]) do take_over(lane, user, entry[1], entry[2][2]) end
    if call('XLEN', stream) == 0 then
      call('DEL', stream)
      call('ZREM', leases_key, member)
      forget_cursor(member)
    elseif found[1] == '0-0' then
      forget_consumers(stream)
      call('ZADD', leases_key, now + math.ceil(lease_ms * LOOK_SHARE), member)
      forget_cursor(member)
    else
      call('ZADD', leases_key, now, member) -- behind those whose time came before now
      if call('HSET', state_key, cursor_field, found[1]) == 1 then count('cursors', 1) end
    end
  end

  -- When to look at the lanes this worker may steal from: the members of `leases` and their times.
  local function own_looks()
    local members = {}
    for _, group in ipairs(work.groups) do
      for _, user in ipairs(group) do
        members[#members + 1] = 'critical:' .. user
        members[#members + 1] = 'normal:' .. user
      end
    end
    return members, call('ZMSCORE', leases_key, unpack(members))
  end

  local function next_look()
    return tonumber(call('ZRANGE', leases_key, 0, 0, 'WITHSCORES')[2] or math.huge)
  end

  local function lanes_to_look_at()
    if work.everyone then return call('ZRANGEBYSCORE', leases_key, '-inf', now, 'LIMIT', 0, LOOKS) end
    if next_look() > now then return {} end
    local due = {}
    local members, looks = own_looks()
    for at, look in ipairs(looks) do
      if look and tonumber(look) <= now then due[#due + 1] = { tonumber(look), at } end
    end
    table.sort(due, function(one, other) return one[1] < other[1] or (one[1] == other[1] and one[2] < other[2]) end)
    local first = {}
    for at = 1, math.min(#due, LOOKS) do first[at] = members[due[at][2]] end
    return first
  end

  -- At most half while others wait for their turn; of a single task every other one.
  local function may_steal()
    if call('EXISTS', ready_key) == 0 then return want end
    if want > 1 then return math.ceil(want / 2) end
    return call('HDEL', state_key, 'stole') == 1 and 0 or 1
  end

  -- The lanes that are due share alike.
  function it.steal()
    local lanes = lanes_to_look_at()
    local most = #lanes > 0 and may_steal() or 0
    local of_each = math.ceil(most / #lanes)
    for _, member in ipairs(lanes) do
      if work.delivered >= most then break end
      steal_from(member, math.min(of_each, most - work.delivered))
    end
    if want == 1 and work.delivered == 1 then call('HSET', state_key, 'stole', 1) end
  end

  -- When this worker has to look again.
  function it.next_look()
    if work.everyone then return next_look() end
    local first = math.huge
    local _, looks = own_looks()
    for _, look in ipairs(looks) do
      if look then first = math.min(first, tonumber(look)) end
    end
    return first
  end

  return it
end

-- lib/serving.lua
-- Who is served, until the worker has enough.

-- lib/delivering.lua
-- One task from its lane into the hands of a worker.

local function new_delivering(claim, work)
  local worker, lease_ms, max_message_bytes, fairness = claim[1], claim[3], claim[4], claim[9]
  local it = {}
  local by_time = fairness == 'time'

  -- What this call knows of the users it serves.
  local serving = {}
  function it.knowledge(user)
    local known = serving[user]
    if not known then
      known = {
        critical = call('ZCARD', place_key('critical', user)),
        normal = call('ZCARD', place_key('normal', user)),
      }
      serving[user] = known
    end
    return known
  end

  -- Into the stream, and into this worker's hands: FORCE delivers an entry that no consumer has read.
  local function append(lane, user, id, known)
    local stream = stream_key(lane, user)
    if not known[stream] then
      if call('EXISTS', stream) == 0 then
        call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
        call('ZADD', leases_key, now + lease_ms, lane .. ':' .. user)
      end
      known[stream] = true
    end
    local stream_id = call('XADD', stream, '*', 'id', id)
    call('XCLAIM', stream, 'workers', worker, 0, stream_id, 'FORCE', 'JUSTID', 'LASTID', stream_id)
    return stream_id
  end

  -- What is charged by time is not known before: what tasks of this name took lately, corrected when it is.
  local function estimate(name)
    local known = call('HGET', prefix .. 'run-times', name) or call('HGET', prefix .. 'run-times', '')
    return known and tonumber(string.match(known, ' (.*)')) or 0.1
  end

  -- Takes the first task of the user; returns what it costs, or nil when it is gone from Redis or waits for its name. Second:
  -- whether it was let in for its name.
  local function deliver(user, known)
    local lane = known.critical > 0 and 'critical' or 'normal'
    local popped = call('ZPOPMIN', place_key(lane, user))
    known[lane] = known[lane] - 1
    local id, score = popped[1], popped[2]
    local body = load_body(user, id, max_message_bytes)
    local key = task_key(user, id)
    if not body then
      count(lane, -1)
      call('DEL', keys_of_task(user, id))
      work.moved = work.moved + 1
      return nil
    end
    local name = (limited or by_time) and name_in(body)
    local limit = limited and limited.of(name)
    if limit and limited.must_wait(limit, user, id) then
      limited.hold(limit, user, id, lane, score)
      work.moved = work.moved + 1
      return nil
    end
    count(lane, -1)
    local cost, history = cost_of(body), ''
    local stream_id = append(lane, user, id, known)
    local attempt = call('HINCRBY', key, 'attempt', 1)
    local new_fields = call('HSET', key, 'state', 'started', 'lane', lane, 'score', score, 'stream_id', stream_id,
      'worker', worker, 'started', now_text)
    local was_offered = limit and limited.start(limit, user, id)
    local paid = false
    if new_fields < 6 then -- it was deferred, scheduled, retried, released, held or watched before
      local before = call('HMGET', key, 'failures', 'lost', 'returned', 'since', 'queued', 'paid', 'watched', 'offered')
      if before[7] then publish(user, id, 'started') end
      if before[8] then -- the limit is gone
        limited = limited or new_limits()
        limited.end_offer(user, id)
      end
      history = history_of(before[1], before[2], before[3], before[4], before[5])
      if before[6] then
        call('HDEL', key, 'paid')
        paid = true
      end
    end
    work.note(user, id, lane, stream_id, attempt, score, history, body)
    if paid then return 0, was_offered end
    if by_time then
      cost = cost * estimate(name)
      call('HSET', key, 'charged', cost)
    end
    return cost, was_offered
  end

  -- A user that goes on with something else does not need the places that it was offered.
  function it.start_next(user, known)
    local cost, was_offered = deliver(user, known)
    if cost and limited and not was_offered and limited.take_back(user) then
      known.critical, known.normal = call('ZCARD', place_key('critical', user)), call('ZCARD', place_key('normal', user))
    end
    return cost
  end

  -- Lanes were filled meanwhile.
  function it.look_anew() serving = {} end

  return it
end

local function new_serving(claim, work)
  local want = claim[2]
  local it, delivering = {}, new_delivering(claim, work)
  local MOVES = 200 -- steps of one call that deliver nothing

  -- Whose first task was nothing to run has paid nothing, and stays the lowest: it rests until all others had their turn.
  local resting = { users = {}, count = 0 }
  local function rest(user) resting.users[user], resting.count = true, resting.count + 1 end
  local function wake_the_resting()
    if resting.count == 0 then return false end
    resting.users, resting.count = {}, 0
    return true
  end

  local ready_users = 0
  local function serve(user, tag)
    local known = delivering.knowledge(user)
    local cost = delivering.start_next(user, known)
    if cost then
      clock = math.max(clock + cost / ready_users, tag)
      mean = mean_after(mean, cost)
      tag = tag + cost
    else
      rest(user)
    end
    if known.critical + known.normal > 0 then
      call('ZADD', ready_key, tag, user)
      return tag
    end
    leave(user, tag, ready_users > 1)
    ready_users = ready_users - 1
    return nil
  end

  local function serve_governed(user, tag, group_tag)
    local u = governed.user(user)
    local gate = not u.served and governed.gate(u)
    if gate then
      work.moved = work.moved + 1
      return governed.hold_back(u, gate)
    end
    u.served = true
    local known = delivering.knowledge(user)
    local cost = delivering.start_next(user, known)
    if cost then
      governed.note_start(u)
      governed.charge(u, cost, tag, group_tag)
    else
      rest(user)
    end
    if known.critical + known.normal == 0 then return governed.leave(u) end
    gate = governed.gate(u)
    if gate then governed.hold_back(u, gate) end
  end

  -- Those who are held back, and tasks that must wait for their name, take time as well.
  function it.has_room() return work.delivered < want and work.moved < MOVES end

  local function serve_everyone()
    while it.has_room() do
      local user, tag = lowest_in(ready_key, resting)
      if not user then return end
      serve(user, tag)
    end
  end

  local function serve_group(group)
    local tags = {}
    for at, tag in ipairs(call('ZMSCORE', ready_key, unpack(group))) do tags[at] = tag and tonumber(tag) end
    while it.has_room() do
      local best
      for at = 1, #group do
        local tag = not resting.users[group[at]] and tags[at]
        if tag and (not best or tag < tags[best] or (tag == tags[best] and group[at] < group[best])) then best = at end
      end
      if not best then return end
      tags[best] = serve(group[best], tags[best])
    end
  end

  local function serve_by_policy(group)
    while it.has_room() do
      local user, tag, group_tag
      if #group == 0 then user, tag, group_tag = governed.lowest(resting) else user = governed.lowest_of(group, resting) end
      if not user then return end
      serve_governed(user, tag, group_tag)
    end
  end

  local function serve_groups()
    if governed and governed.all_paused then return end
    for _, group in ipairs(work.groups) do
      if governed then
        serve_by_policy(group)
      elseif #group == 0 then
        serve_everyone()
      else
        serve_group(group)
      end
    end
  end

  function it.serve()
    repeat
      ready_users = call('ZCARD', ready_key)
      serve_groups()
      local goes_on = wake_the_resting()
      if limited and limited.pass_on(work.promoted) then
        delivering.look_anew()
        goes_on = true
      end
    until not (goes_on and it.has_room())
  end

  function it.was_cut() return work.moved >= MOVES end

  return it
end

-- lib/waiting.lua
-- A worker that got too little goes to sleep; one that got enough does not.

-- lib/places.lua

-- Every place in which a user has tasks, but those that run.
local function places_of(user)
  return place_key('critical', user), place_key('normal', user), place_key('held', user), place_key('scheduled', user),
    place_key('deferred', user), place_key('dead', user)
end

-- lib/keeper.lua
-- Workers that go to sleep, or are no longer idle, and the moment that one of them keeps. Closures cost every call of a
-- script: these are made where they are needed.

local function new_keeping(worker)
  local it = {}

  -- Of all sets of moments, with a user that it concerns.
  local function next_moment()
    local first = call('ZRANGE', due_key, 0, 0, 'WITHSCORES')
    local at, user = tonumber(first[2] or math.huge), first[1]
    if has_policies then
      first = call('ZRANGE', prefix .. 'parked', 0, 0, 'WITHSCORES')
      if first[1] and tonumber(first[2]) < at then at, user = tonumber(first[2]), first[1] end
    end
    if has_limits then
      first = call('ZRANGE', prefix .. 'held', 0, 0, 'WITHSCORES')
      if first[1] and tonumber(first[2]) < at then
        at, user = tonumber(first[2]), call('ZRANGE', prefix .. 'held-users:' .. first[1], 0, 0)[1]
      end
    end
    return at, user
  end

  local function find_second(user, second)
    if second and second ~= worker and reaches(second) then return end
    call('HDEL', state_key, 'second')
    wake(user, 1, worker)
  end

  -- The worker goes to sleep. Returns until when: the next moment, a little later, or for ever when others see to it.
  function it.keep()
    soonest = math.huge -- this worker knows
    local at, user = next_moment()
    local kept_at, keeper = moment_kept()
    local second = call('HGET', state_key, 'second')
    if at == math.huge then
      if keeper == worker then call('HDEL', state_key, 'keeper') end
      return at
    end
    if kept_at and kept_at <= at and keeper ~= worker then
      if second and second ~= worker then return math.huge end
      call('HSET', state_key, 'second', worker)
      return at + SECOND_MS
    end
    call('HSET', state_key, 'keeper', string.format('%d ', at) .. worker)
    if not kept_at or at < kept_at then
      find_second(user, second)
    elseif second == worker then
      call('HDEL', state_key, 'second')
    end
    return at
  end

  -- True: it was one of the two.
  function it.forget()
    -- Also one that is too late: the second looks when the moment of the keeper is over.
    local keeper = string.match(keeper_known, ' (.*)$')
    local field = keeper == worker and 'keeper' or call('HGET', state_key, 'second') == worker and 'second'
    if field then call('HDEL', state_key, field) end
    return field
  end

  -- The worker has no time for it any more.
  function it.hand_on()
    if not it.forget() then return end
    local at, user = next_moment()
    local second = at < math.huge and call('HGET', state_key, 'second')
    if at < math.huge and not (second and reaches(second)) then wake(user, 1, worker) end
  end

  return it
end

local function new_waiting(claim, work, stealing, serving)
  local worker, steals = claim[1], claim[8]
  local it = {}
  local LOOKS = 20

  -- An idle moment is used to forget users that nothing remembers.
  local function prune_users()
    for _, user in ipairs(call('ZRANGEBYSCORE', users_key, '-inf', now - USER_TTL, 'LIMIT', 0, LOOKS)) do
      local kept = call('EXISTS', prefix .. 'user:' .. user, places_of(user))
      if kept > 0 then
        call('ZADD', users_key, now, user)
      else
        call('ZREM', users_key, user)
      end
    end
  end

  -- The worker wants to be told; how long may it sleep when nobody tells it?
  local function in_waiting_sets(verb)
    for _, group in ipairs(work.groups) do
      if #group == 0 then
        call(verb, prefix .. 'waiting', worker)
      else
        for _, user in ipairs(group) do call(verb, prefix .. 'waiting:' .. user, worker) end
      end
    end
  end

  function it.wait()
    prune_users()
    in_waiting_sets('SADD')
    if not work.everyone and not has_limited then call('HSET', state_key, 'limited', 1) end
  end

  function it.next_event()
    local at = new_keeping(worker).keep()
    if steals then at = math.min(at, stealing.next_look()) end
    if call('EXISTS', prefix .. 'announcements') == 1 or serving.was_cut() or work.is_swept then at = now end
    if limited and limited.is_counting() then at = now end
    return at < math.huge and math.max(0, at - now) or -1
  end

  -- A message to a busy worker would be missed by an idle one.
  function it.stay_awake()
    in_waiting_sets('SREM')
    if keeper_known ~= '' then new_keeping(worker).hand_on() end
  end

  return it
end

local function claim_tasks(claim)
  local worker, want, priority_step_ms, dead_letter_ttl_ms, waits, steals =
    claim[1], claim[2], claim[5], claim[6], claim[7], claim[8]
  local LOOKS = 20
  local work = new_work(claim)
  local promotion, stealing, serving = new_promotion(claim, work), new_stealing(claim, work), new_serving(claim, work)
  call('ZADD', prefix .. 'workers', now, worker)
  if has_announcements then pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms) end
  promotion.promote_due()
  if governed then
    local asked = call('HGET', state_key, 'sweep')
    work.is_swept = asked and new_sweep().go_on(asked, work.promoted)
    governed.unpark(LOOKS, work.promoted)
  end
  if limited then limited.tick(work.promoted) end
  if steals then stealing.steal() end
  local stolen = work.delivered
  serving.serve()
  promotion.announce()
  count('started', work.delivered - stolen)
  local waiting, sleep = new_waiting(claim, work, stealing, serving), 0
  if work.delivered < want and waits then
    sleep = waiting.next_event()
    waiting.wait()
  elseif work.delivered >= want then
    waiting.stay_awake()
  end
  local reply = { now, sleep }
  for at = 1, #work.served do reply[at + 2] = work.served[at] end
  return reply
end
-- ARGV[1] is the msgpack of Claim: worker: str, want: int, lease_ms: int, max_message_bytes: int, priority_step_ms:
--   int, dead_letter_ttl_ms: int, waits: bool, steals: bool, fairness: str, groups: list[list[str]]
--   waits: note the worker as waiting when short. steals: look at what silent workers have. fairness: cost or time.
--   groups: the users it serves, first to last; an empty group is everyone.
local args = cmsgpack.unpack(ARGV[1])
local worker, want, lease_ms, max_message_bytes, priority_step_ms, dead_letter_ttl_ms, waits, steals, fairness, groups
  =
  args[1], args[2], args[3], args[4], args[5], args[6], args[7], args[8], args[9], args[10]
local reply = claim_tasks(args)
save_state()
return reply

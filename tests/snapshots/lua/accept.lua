#!lua
-- A partition hears what homes of keys tell it of what it has borrowed, and lets in who may start with that.
-- KEYS[1]  state
-- Returns  1 where there is more to ask at once, else 0
-- Cost     O(tells log users), and of each what is let in
local keys_of_call, values_of_call = KEYS, ARGV
local KEYS, ARGV
local calls, NEXT = {}, {}

-- lib/alive.lua
-- A queue whose `state` is lost stops here and says so: whether it has policies and limits, its clock and its totals are
-- gone. One that was never used has no settings either.

-- lib/base.lua
-- The queue's keys and its clock. Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash
-- tag.
local call
local prefix
local state_key
local ready_key
local due_key
local leases_key
local users_key
local time
local now_us
local now
local now_text

-- A user hash nobody touched for this long is forgotten (its policy is a key of its own and stays).
local USER_TTL = 604800000

local function user_key(user) return prefix .. 'user:' .. user end
local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function uses_key(user, id) return prefix .. 'uses:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end
local function children_key(user, id) return prefix .. 'children:' .. user .. ':' .. id end
local function ends_key(user, id) return prefix .. 'ends:' .. user .. ':' .. id end

-- What it yields: append.lua.
local function chunks_key(user, id) return prefix .. 'chunks:' .. user .. ':' .. id end

-- The attempt of a task that runs: the first one is not written down, as most tasks need no other.
local function attempt_in(field) return tonumber(field or 1) end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

-- What went wrong, as pcall tells it.
local function text_of(failure) return type(failure) == 'table' and failure.err or tostring(failure) end

-- Not for a key, but as the server does not let one write, or a permission is missing.
local OF_ALL = { '^OOM', '^READONLY', '^MISCONF', '^NOREPLICAS', '^NOPERM', '^NOAUTH', '^CLUSTERDOWN', 'ACL failure' }
local function is_of_all(text)
  for _, pattern in ipairs(OF_ALL) do
    if string.find(text, pattern) then return true end
  end
  return false
end

-- What is damaged of one is not the others': whether it could be done, and what came of it.
local function try_alone(act, ...)
  local is_done, told = pcall(act, ...)
  if not is_done and is_of_all(text_of(told)) then error(told, 0) end
  return is_done, told
end

-- What happened is done, also where nobody may be told of it.
local function publish(user, id, event) redis.pcall('SPUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end
calls[#calls + 1] = function()
  call = redis.call
  prefix = string.sub(KEYS[1], 1, -6)
  state_key = KEYS[1]
  ready_key = prefix .. 'ready'
  due_key = prefix .. 'due'
  leases_key = prefix .. 'leases'
  users_key = prefix .. 'users'
  time = call('TIME')
  now_us = time[1] * 1000000 + time[2]
  now = math.floor(now_us / 1000)
  now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew
  return NEXT
end
return (function()

-- lib/state.lua
-- What the queue keeps of itself: read once, and written back by save_state().
local arrival
local clearing_known
local count
local counts
local forfeited_at
local has_announcements
local has_assigned
local has_byte_limits
local has_damaged
local has_expiring
local has_in_hand
local has_limits
local has_moved
local has_policies
local has_returned
local has_weights
local hunt_known
local is_weighing
local keeper_known
local leaves_limits_alone
local next_arrival
local of_queue
local revision_known
local root
local save_bytes
local save_lines
local save_state
local save_tallies
local silent_at_known
local sweep_asked
local tell_of_moments
do

local fields_of_queue
local saved_clock, saved_arrival, saved_mean

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- Totals of the queue. One that is no number begins anew.
function count(field, by) counts[field] = (counts[field] or 0) + by end


-- A line that is of another type fails the call, but costs it no total. One that cannot be counted up is set.
function save_state()
  if save_tallies then save_tallies() end
  if save_bytes then save_bytes() end
  local is_done, failure = true, nil
  if save_lines then is_done, failure = pcall(save_lines) end
  local put = {}
  local function set(field, value) put[#put + 1], put[#put + 2] = field, value end
  for field, by in pairs(counts) do
    if by ~= 0 then set(field, (tonumber(of_queue[field]) or 0) + by) end
  end
  if root.clock ~= saved_clock then set('clock', root.clock) end -- writing a fraction takes long
  if root.mean ~= saved_mean then set('mean', root.mean) end
  if arrival ~= saved_arrival then set('arrival', arrival) end
  local told = put[1] and redis.pcall('HSET', state_key, unpack(put))
  if type(told) == 'table' then -- a permission that is missing costs no total either
    for field, by in pairs(counts) do
      if by ~= 0 then call('HINCRBY', state_key, field, by) end
    end
    error(told, 0)
  end
  if tell_of_moments then tell_of_moments() end
  if not is_done then error(failure, 0) end
end
calls[#calls + 1] = function()
  of_queue, fields_of_queue = {}, call('HGETALL', state_key) -- few: to ask for those that may be there takes longer
  for at = 1, #fields_of_queue, 2 do of_queue[fields_of_queue[at]] = fields_of_queue[at + 1] end
  arrival = tonumber(of_queue.arrival or 0)
  has_policies, has_assigned = of_queue.policies, of_queue.assigned
  clearing_known = of_queue.clearing or '' -- lib/suspects.lua
  has_announcements, has_limits, keeper_known = of_queue.announcements, of_queue.limits, of_queue.keeper or ''
  has_weights, sweep_asked, has_returned = of_queue.weighted, of_queue.sweep, of_queue.returning
  has_byte_limits, is_weighing = tonumber(of_queue.byte_limits or 0) > 0, of_queue.weighing
  has_in_hand = tonumber(of_queue.in_hand or 0) -- lib/limits.lua
  has_damaged = of_queue.damaged -- lib/damage.lua
  hunt_known, silent_at_known = of_queue.hunt, of_queue.silent_at -- lib/hunt.lua, lib/silence.lua
  has_expiring = of_queue.expiring -- lib/expiry.lua
  root = { clock = tonumber(of_queue.clock or 0), mean = tonumber(of_queue.mean or 0) } -- the first line: lib/lines.lua
  root.elsewhere = tonumber(of_queue.elsewhere) -- of a partition: the time of the queue, see lib/between.lua
  has_moved = of_queue.moved -- lib/moved.lua
  revision_known = tonumber(of_queue.revision or 0) -- lib/revision.lua
  forfeited_at = tonumber(of_queue.forfeited_at or 0) -- the revision at which places of a partition were: lib/loans.lua
  saved_clock, saved_arrival, saved_mean = root.clock, arrival, root.mean
  counts = {}
  save_bytes = nil -- a function in scripts that count bytes: lib/bytes.lua
  return NEXT
end
end

calls[#calls + 1] = function()
  if not of_queue.arrival and call('EXISTS', prefix .. 'settings') == 1 then
    return redis.error_reply('LOSTSTATE the key "state" of this queue is lost, and nothing can be put in or served: run '
      .. '`fairque doctor --repair`, which begins it anew and counts')
  end
  return NEXT
end

-- lib/limits.lua
-- Limits: how many tasks of a key run at once, and how often they start. A task has the key of its name, and those that it
-- was put in with. `limited` is nil in a queue that has none. A task that must wait is held apart under one of its keys, so
-- that it blocks nothing behind it. Room goes by turns of users: who is let in has a place of each of its keys in hand, and
-- comes back to its place in its lane.
-- A key `<k>` is `<u>:<text>` or, of a template that was filled, `<u>=<template>:<text>`; without `<u>` all users share it.
-- What is set lies in records `<r>`: `<u>:<text>`, or `<u>=<template>`.
-- In a queue with partitions, keys that all users share are counted in several, see lib/loans.lua.
-- limit:<r>           hash    by (hand or code), max, rate_us, burst: what holds; hand, code: what each of them says;
--                             changed: of a partition, us at which `max` did;
--                             uncounted, while what ran before it is being counted; paused, where nothing may start
-- uncounted           set     records whose limits are uncounted; `recount` of `state` tells how far the count has come
-- limit-rate:<k>      string  'tat interval', see lib/gcra.lua
-- running:<k>         set     <u>:<id> of the deliveries that count
-- let-in:<k>          zset    <u>:<id> of tasks that have a place in hand and have not started → ms until when
-- offers:<u>          hash    the same of one user: id → keys; `in_hand` of `state` tells how many there are of all users
-- held                zset    keys with held tasks → ms of the next look
-- held-keys:<u>       zset    keys of templates, and of that user alone, in whose line it stands → ms of a look by its turn
-- held-turns          zset    users → ms of the first of these, or of its last turn: where more keys are due than one call
--                             looks at, they go by turns of users
-- held-users:<k>      zset    users with held tasks of that key → when they were last let in, in us, or may be again
-- held:<u>            zset    held tasks of a user → their score
-- held:<u>:<k>        zset    the same, of one key; one that keeps a place of another key is the first
-- kept:<k>            set     those of let-in:<k> that are held, and keep their place while they wait for another key
-- keeper:<u>          string  the task of the user that does so, or did so in vain

-- lib/message.lua
-- What scripts read of the body of a task. A body that cannot be read belongs to somebody else.

local LONGEST_HEAD = 2200 -- of a body, with a name of 512 bytes and two limit keys

-- The name of a task, '' where the body cannot be read; second: the name and the limit keys that it was put in with, if it
-- has any, each as {text, its template percent-encoded or nil, whether it is of each user}.
local function heading_in(body)
  local ok, _, heading = pcall(cmsgpack.unpack_one, body, 19)
  if ok and type(heading) == 'table' and type(heading[1]) == 'string' then return heading[1], heading end
  return ok and type(heading) == 'string' and heading or ''
end

local function name_in(body) return (heading_in(body)) end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

-- As far as it can be read.
local function head_of_task(user, id)
  local head = redis.pcall('GETRANGE', body_key(user, id), 0, 17)
  return type(head) == 'string' and head or ''
end

local function cost_of_task(user, id) return cost_of(head_of_task(user, id)) end

local function priority_of(head)
  local priority = string.byte(head, 18) or 3
  return priority >= 1 and priority <= 6 and priority or 3
end

-- lib/fair.lua
-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996), and its doors. What they change is written
-- by save_state().

-- lib/moments.lua
-- What becomes possible by time alone. One idle worker, the keeper, sleeps until the next moment, and a second one for a
-- little longer, should the keeper be gone by then; the others sleep on. `keeper` in the state is the moment it knows and
-- its name, `second` a name. See lib/keeper.lua as well.

-- lib/wake.lua
-- Tell at most `tasks` idle workers that `user` has work, or all that serve everyone, and not the one that calls. A worker
-- whose message nobody received is gone: the next is told.

local give_later -- a function in scripts that answer claims which rest: lib/resting.lua

local function reaches(worker) return call('SPUBLISH', prefix .. 'wake:' .. worker, '') > 0 end

local function tell_all_workers()
  for _, worker in ipairs(call('ZRANGE', prefix .. 'workers', 0, -1)) do reaches(worker) end
end

local function wake_from(set, tasks, except)
  while tasks > 0 do
    local worker = call('SPOP', set)
    if not worker then break end
    if worker ~= except and (give_later and give_later(worker) or reaches(worker)) then tasks = tasks - 1 end
  end
  return tasks
end

local function wake(user, tasks, except)
  -- Of none, where that key is of another type.
  for _, name in ipairs(has_assigned and user and redis.pcall('SMEMBERS', prefix .. 'assignments:' .. user) or {}) do
    if tasks > 0 then tasks = wake_from(prefix .. 'waiting:' .. name, tasks, except) end
  end
  if tasks > 0 then wake_from(prefix .. 'waiting', tasks, except) end
end
local SECOND_MS
local moment_kept
local note_moment
local soonest
do

SECOND_MS = 50

-- A moment that is sooner than the one the keeper knows is told to one worker, when the script ends.
local soonest_user
function note_moment(at, user)
  if at < soonest then soonest, soonest_user = at, user end
end

-- What the keeper knows, and its name; nothing when it did not look at its moment.
function moment_kept()
  local at, keeper = string.match(keeper_known, '^(%d+) (.*)$')
  if at and at + SECOND_MS >= now then return tonumber(at), keeper end
end

function tell_of_moments()
  if soonest == math.huge then return end
  local at, keeper = moment_kept()
  if at and (at <= soonest or reaches(keeper)) then return end
  wake(soonest_user, 1)
end
calls[#calls + 1] = function()
  soonest, soonest_user = math.huge, nil
  return NEXT
end
end

-- lib/expiry.lua
-- Tasks that begin by a moment, or not at all.
-- expiring:<u>  zset  those of a user that have not begun → ms by which they must
-- expiring      zset  user → ms of its first one, or of its last turn where it has more that is due: as `due` has it of
--                     what is scheduled
-- `expiring` in the state tells that there are some, `expires` of a task the ms by which it must begin.
local deadlines
do

deadlines = {}
local expiring_key

-- `at` is a number, or the text of one.
function deadlines.note(user, id, at)
  call('ZADD', place_key('expiring', user), at, id)
  call('ZADD', expiring_key, 'LT', at, user)
  call('HSET', state_key, 'expiring', 1)
  note_moment(tonumber(at), user)
end

function deadlines.pass_over(user)
  call('ZREM', expiring_key, user)
  if call('EXISTS', expiring_key) == 0 then call('HDEL', state_key, 'expiring') end
end

-- It has begun, or ended. One that had its turn stays behind the others.
function deadlines.forget(user, id)
  local of_user = place_key('expiring', user)
  if call('ZREM', of_user, id) == 0 then return end
  local first = call('ZRANGE', of_user, 0, 0, 'WITHSCORES')[2]
  if first then call('ZADD', expiring_key, 'GT', first, user) else deadlines.pass_over(user) end
end

-- Whether the user has any.
function deadlines.concerns(user) return call('ZSCORE', expiring_key, user) end

-- Whether the time of a task is over; nil of one that has all of it.
function deadlines.is_over(user, id)
  local at = call('ZSCORE', place_key('expiring', user), id)
  if at then return tonumber(at) <= now end
end

-- ms of the first of all, nil where there is none.
function deadlines.next_ms() return tonumber(call('ZRANGE', expiring_key, 0, 0, 'WITHSCORES')[2] or nil) end

-- Users that have some whose time is over, at most so many.
function deadlines.due(most) return call('ZRANGEBYSCORE', expiring_key, '-inf', now, 'LIMIT', 0, most) end

-- The turn of a user is over.
function deadlines.had_its_turn(user)
  local first = call('ZRANGE', place_key('expiring', user), 0, 0, 'WITHSCORES')[2]
  if first then call('ZADD', expiring_key, math.max(now, first), user) else deadlines.pass_over(user) end
end
calls[#calls + 1] = function()
  expiring_key = prefix .. 'expiring'
  return NEXT
end
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
-- What is measured of a user, in `metrics:<u>`, and of the whole queue, in `metrics:*`: a msgpack array, read and written as
-- a whole.
--  1 finished   2 failed  3 canceled  4 retried (totals)   5 cost   6 busy (microseconds)
--  7 recent cost   8 recent busy seconds   9 recent services   10 when it was written, in ms   11 since when all is measured: ms before
-- 12 services   13 cost   14 busy microseconds: of the hour in which it was written
-- 15 ... the histogram of waits: bucket, count, of those that have one
local WAITS, WAIT_BUCKETS = 15, 22 -- bucket k holds waits below 2^k ms, the last one all others
local RECENT_MS = 60000 -- what is recent fades with this time constant

-- Recent services, and in how many ms they would have been as many at that rate.
local function recent_services(blob)
  local m = cmsgpack.unpack(blob)
  local span = RECENT_MS * (1 - math.exp((m[10] - m[11] - now) / RECENT_MS))
  return m[9] * math.exp((m[10] - now) / RECENT_MS), span
end

-- lib/policies.lua
-- A policy is a msgpack map in `policy:<u>`; what it does not say comes from `policy:*`, and a group's own is in
-- `policy:@<path>`. A queue without policies is served without looking for any.
local forget_policies_if_none
local read_policies_ahead
local read_policy
do

-- Those of many, by who has one, read at once.
local policies_ahead
function read_policies_ahead(many)
  local keys = {}
  for at, whose in ipairs(many) do keys[at] = prefix .. 'policy:' .. whose end
  if not keys[1] then return end
  for at, packed in ipairs(call('MGET', unpack(keys))) do policies_ahead[many[at]] = packed or nil end
end

function read_policy(whose)
  -- To be read for certain, as a key of another type is an error that MGET does not tell.
  local packed = policies_ahead[whose] or call('GET', prefix .. 'policy:' .. whose)
  return packed and cmsgpack.unpack(packed) or {}
end

-- One that is being swept is not without them yet.
function forget_policies_if_none()
  local left = call('HMGET', state_key, 'policies', 'sweep')
  if left[1] == '0' and not left[2] then
    call('HDEL', state_key, 'policies')
    call('UNLINK', prefix .. 'reserved') -- by a default that was taken back
  end
end
calls[#calls + 1] = function()
  policies_ahead = {}
  return NEXT
end
end

-- lib/absence.lua
-- The same as a question, which costs nothing where nobody is absent.

-- lib/absent.lua
-- Users of whom nothing is to be changed or served here: they stand still, or live in another partition.

-- lib/frozen.lua
-- A user stands still while it is carried elsewhere (dump.lua, import.lua): what waits is in no line, what time would bring waits,
-- and who would change something of it is told so.
-- frozen:<u>  hash  token: whose it is; why: 'export' or 'move', which end by themselves when the key does, 'import' or 'arrive';
--                   at: how many records of an import are there; leaves_until: of an import that is carried elsewhere with its
--                   end, in ms: till then nothing of it changes; ahead: by how much its tag was ahead of the clock. Of one that
--                   arrives: source, where it comes from; passport: lib/passport.lua; n:<total>: what it adds to totals
-- Until then the user is in `damaged` as well, with which everybody leaves it alone: lib/damage.lua.

local function frozen_key(user) return prefix .. 'frozen:' .. user end

local function is_frozen(user) return call('EXISTS', frozen_key(user)) == 1 end

local function refuse_frozen(user)
  if is_frozen(user) then error({ err = 'FROZEN ' .. user }, 0) end
end

-- lib/moved.lua
-- Users who do not live here, though somebody may look for them here, and where they live.
-- moved  hash  user → '<partition> <epoch>'
-- In the state: moved, 1 while there are some, so that a partition that nobody left pays nothing.
-- An epoch is a number that grows with each move of a user: whoever knows a later one is not sent back by an entry that is
-- older, which a partition may have to which the user is on its way.
local moved_to
local refuse_all_moved
local refuse_moved
do

local moved_key

-- Where it lives, as it is written there, or false.
function moved_to(user) return call('HGET', moved_key, user) end

function refuse_moved(user)
  local place = moved_to(user)
  if place then error({ err = 'ELSEWHERE ' .. user .. ' ' .. place }, 0) end
end

-- All of several at once, as they may be many.
function refuse_all_moved(users)
  local told = {}
  for at, place in ipairs(users[1] and call('HMGET', moved_key, unpack(users)) or {}) do
    if place then told[#told + 1] = users[at] .. ' ' .. place end
  end
  if told[1] then error({ err = 'ELSEWHERE ' .. table.concat(told, ' ') }, 0) end
end

-- From now on it does not live here. Who waits for its tasks is told. False: a later move is known.
local function mark_moved(user, partition, epoch)
  local known = tonumber(string.match(moved_to(user) or '', ' (%d+)$') or nil)
  if known and known > epoch then return false end
  local place = string.format('%d %d', partition, epoch)
  call('HSET', moved_key, user, place)
  call('HSET', state_key, 'moved', 1)
  call('ZREM', users_key, user) -- it is listed where it lives
  redis.pcall('SPUBLISH', moved_key, user .. ' ' .. place)
  return true
end

-- It lives here from now on.
local function unmark_moved(user)
  call('HDEL', moved_key, user)
  if call('EXISTS', moved_key) == 0 then call('HDEL', state_key, 'moved') end
end

-- Whether an act failed as its user does not live here.
local function is_of_moved(failure) return string.find(text_of(failure), '^ELSEWHERE ') and true or false end

-- Who is in a group lives where that does: where its root is said to live, as a user is. path: with an '@' in front, or not.
local function refuse_moved_group(path)
  local outermost = path and string.match(path, '^@?([^/]+)')
  if outermost then refuse_moved('@' .. outermost) end
end
calls[#calls + 1] = function()
  moved_key = prefix .. 'moved'
  return NEXT
end
end
local refuse_absent
do

function refuse_absent(user)
  refuse_moved(user) -- first: where it arrives it stands still, and is not there yet
  refuse_frozen(user)
end

-- For what may be said of one that is exported or imported, and must not get lost on the way to another partition.
local function refuse_leaving(user)
  refuse_moved(user)
  local known = call('HMGET', frozen_key(user), 'why', 'leaves_until')
  if known[1] == 'move' or tonumber(known[2] or 0) > now then refuse_frozen(user) end
end
end

-- Once a user has left, what is still here of it is as if it were not.
local function is_absent(user)
  return has_damaged and is_frozen(user) or has_moved and moved_to(user) and true or false
end

-- What fails for one user: see lib/damage.lua.
local damage

-- Called with a user: functions in scripts that know limits of names (lib/limits.lua).
local on_held_back, on_reviewed

-- Their functions name each other by these tables. A queue that has no policies is `plain`.
local lines, fronts, nodes, assignments, gates, reservations, plain, governing = {}, {}, {}, {}, {}, {}, {}, {}
-- One of the two, and the second one or nil.
local choice, governed
calls[#calls + 1] = function()
  on_held_back, on_reviewed = nil, nil
  choice, governed = nil, nil
  return NEXT
end
do

-- lib/lines.lua
do
-- Lines: those that may be served now, with their tags. The members of a line are users, and '@<path>' for a group that
-- shares in it. A call changes them in its memory, and writes each line back at once.
-- ready, ready:<path>  zset  member → tag
-- left, left:<path>    zset  members that left → the tag they left with, until the lowest has passed it
-- group:<path>         hash  clock, mean and weight of a group; `capped`: the tag at which it is held

-- The mean of what services took the members of a line further lately; 0 before the first.
lines.MEAN_OVER = 32
-- Mean services that one may be owed that was held at its cap, and above the lowest tag to which debts are cut: those
-- that were not made in turn, when their cause is gone; and all, so that tags keep their digits.
lines.CREDIT, lines.HORIZON, lines.LARGEST_DEBT = 4, 8, 2 ^ 20
function lines.mean_after(of_line, step)
  if step <= 0 then return of_line end
  return of_line > 0 and of_line + (step - of_line) / lines.MEAN_OVER or step
end

-- tags: what is known of members, false of those that are not in; moved: those to be written. first, low: the lowest
-- member and its tag, false where nobody is in, nil where it is not known. kept: own tags; leaving: those to be written.
function lines.new(line, base, key, left_key)
  line.base, line.key, line.left_key = base, key, left_key
  line.tags, line.moved, line.kept, line.leaving, line.lowered = {}, {}, {}, {}, {}
  return line
end

function lines.at(path)
  local line = lines.by_path[path]
  if line then return line end
  local outer = string.match(path, '^(.*)/')
  line = { path = path, member = '@' .. path, hash = prefix .. 'group:' .. path, up = outer and lines.at(outer) or root }
  local found = call('HMGET', line.hash, 'clock', 'mean', 'weight', 'capped')
  line.clock, line.mean, line.capped = tonumber(found[1] or 0), tonumber(found[2] or 0), tonumber(found[4] or nil)
  line.weight = tonumber(found[3] or read_policy(line.member).weight or 1)
  lines.by_path[path] = lines.new(line, 'ready', prefix .. 'ready:' .. path, prefix .. 'left:' .. path)
  return line
end

-- A sorted set of up to 128 members is a list, in which each change reads the fractions of all the others; one long
-- member turns it into a skip list for as long as it lives.
local long_member
local MANY_AT_ONCE = 8
function lines.write_moves(line)
  local put, gone = {}, {}
  for member in pairs(line.moved) do
    local tag = line.tags[member]
    if tag then
      put[#put + 1] = tag
      put[#put + 1] = member
    else
      gone[#gone + 1] = member
    end
  end
  if #put > 0 and line.was_empty then
    put[#put + 1], put[#put + 2], gone[#gone + 1] = 0, long_member, long_member
    line.was_empty = false
  end
  if #put > 0 then call('ZADD', line.key, unpack(put)) end
  if #gone > 0 then call('ZREM', line.key, unpack(gone)) end
  line.moved = {}
  if next(line.lowered) then assignments.lower(line) end
end

function lines.flush(line)
  if next(line.moved) then lines.write_moves(line) end
end

function lines.tag(line, member)
  local tag = line.tags[member]
  if tag == nil then
    tag = line.first ~= false and tonumber(call('ZSCORE', line.key, member) or nil) or false
    line.tags[member] = tag
  end
  return tag
end

-- How many are in it.
function lines.size(line)
  if not line.size then
    lines.flush(line)
    line.size = call('ZCARD', line.key)
  end
  return line.size
end

-- The lowest member and its tag, false where nobody is in.
function lines.lowest(line)
  if line.first == nil then
    lines.flush(line)
    local found = call('ZRANGE', line.key, 0, 0, 'WITHSCORES')
    line.first, line.low = found[1] or false, tonumber(found[2])
    if found[1] then line.tags[found[1]] = line.low else line.was_empty, line.size = true, 0 end
  end
  return line.first, line.low
end

function lines.low(line) return lines.lowest(line) and line.low or line.clock end

-- Who enters now enters there or above.
local function least_entry(line)
  return line.elsewhere and math.min(lines.low(line), line.elsewhere) or lines.low(line)
end

-- Its tag is known, as `tag` found it.
function lines.set(line, member, tag)
  if has_assigned and (not line.tags[member] or tag < line.tags[member]) then
    assignments.of(member) -- will be needed: what is broken of it shows here
    line.lowered[member] = true
  end
  if line.size and not line.tags[member] then line.size = line.size + 1 end
  line.tags[member], line.moved[member] = tag, true
  if line.first == nil then return end
  if line.first == false or tag < line.low then
    line.first, line.low = member, tag
  elseif member == line.first and tag > line.low then
    line.first = nil
  end
end

function lines.remove(line, member)
  line.size = lines.size(line) - 1
  line.tags[member], line.moved[member] = false, true
  if line.size == 0 then
    line.first = false
  elseif line.first == member then
    line.first = nil
  end
end

-- The tag that a member left with, if it is still known.
function lines.own_tag(line, member)
  local tag = line.kept[member]
  if tag == nil then
    tag = tonumber(call('ZSCORE', line.left_key, member) or nil) or false
    line.kept[member] = tag
  end
  return tag
end

function lines.keep(line, member, tag)
  line.kept[member], line.leaving[member] = tag, true
end

-- What is known of many members, by two reads.
function lines.learn(line, members)
  local tags = line.first ~= false and call('ZMSCORE', line.key, unpack(members)) or {}
  local kept = call('ZMSCORE', line.left_key, unpack(members))
  for at, member in ipairs(members) do
    if line.tags[member] == nil then line.tags[member] = tonumber(tags[at] or nil) or false end
    if line.kept[member] == nil then line.kept[member] = tonumber(kept[at] or nil) or false end
  end
end

-- Own tags that the lowest has passed are of no consequence: as many as came, and some more. Where many come at once it
-- becomes a skip list, as in `write_moves`.
function lines.write_own_tags(line)
  local put_in, came = {}, 0
  for member in pairs(line.leaving) do
    came = came + 1
    put_in[came * 2 - 1], put_in[came * 2] = line.kept[member], member
  end
  line.leaving = {}
  local are_many = came >= MANY_AT_ONCE
  if are_many then put_in[came * 2 + 1], put_in[came * 2 + 2] = 0, long_member end
  call('ZADD', line.left_key, unpack(put_in))
  call('PEXPIRE', line.left_key, USER_TTL)
  local passed = call('ZRANGEBYSCORE', line.left_key, '-inf', least_entry(line), 'LIMIT', 0, 2 * came + 20)
  if are_many then passed[#passed + 1] = long_member end
  if #passed > 0 then call('ZREM', line.left_key, unpack(passed)) end
  if has_assigned then assignments.cut_own_tags(line) end
end

-- What a group is known by is kept for a week after the last of its users.
function lines.write_group(line)
  local is_empty = lines.size(line) == 0
  if line.is_changed then call('HSET', line.hash, 'clock', line.clock, 'mean', line.mean, 'weight', line.weight) end
  if is_empty then
    call('PEXPIRE', line.hash, USER_TTL)
  elseif line.was_joined then
    call('PERSIST', line.hash)
  end
  line.is_changed, line.was_joined = false, false
end

function save_lines()
  for _, line in pairs(lines.by_path) do
    lines.flush(line)
    if next(line.leaving) then lines.write_own_tags(line) end
    if line.is_changed then lines.write_group(line) end
  end
  lines.flush(root)
  if next(root.leaving) then lines.write_own_tags(root) end
end
calls[#calls + 1] = function()
  lines.new(root, 'ready', ready_key, prefix .. 'left')
  lines.by_path = {}
  long_member = string.rep('-', 65)
  return NEXT
end
end

-- lib/nodes.lua
local PLAIN
do
-- Nodes: users, and the groups in which they stand. A node is a member of the line `up`, with a weight; the node of a group
-- is the line of its users. What is done to a user is done to each node above it.
-- user:<u>  hash  `weight`: what its tag was counted with, where that is not 1; `capped`: the tag at which it is held

PLAIN = {} -- the policy of everybody in a queue that has none
local inherited
function nodes.read_policies()
  nodes.known, nodes.everybody = {}, read_policy('*')
  inherited = { __index = nodes.everybody }
end

function nodes.user(name)
  local u = nodes.known[name]
  if u then return u end
  local policy = nodes.everybody and setmetatable(read_policy(name), inherited) or PLAIN
  local line = policy.group and lines.at(policy.group) or root
  u = { name = name, member = name, policy = policy, weight = policy.weight or 1, up = line, served = false }
  nodes.known[name] = u
  return u
end

-- Many users are looked at next.
function nodes.read_ahead(names)
  if not nodes.everybody then return end
  local users = {}
  for _, name in ipairs(names) do
    if not nodes.known[name] and string.byte(name) ~= 64 then users[#users + 1] = name end -- '@' begins a group
  end
  if users[2] then read_policies_ahead(users) end
end

-- What is kept of a user beside its tag, read once.
function nodes.marks(u)
  if u.tat or not (nodes.everybody or has_weights) then return u end
  local marks = call('HMGET', user_key(u.name), 'tat', 'tat_of', 'open_until', 'capped', 'weight')
  u.tat, u.open_until = rate_tat(marks[1], marks[2], u.policy.rate_us), tonumber(marks[3] or 0)
  u.capped, u.counted = tonumber(marks[4] or nil), tonumber(marks[5] or 1)
  return u
end

-- By its policy, or as it was counted last: a weight that was taken back is counted until its turn.
local function is_weighted(u) return u.weight ~= 1 or has_weights and nodes.marks(u).counted ~= 1 end

-- Whoever is busy leaves now and then, which gives the hash a time to live; what its weight was must not be forgotten
-- while it stands in a line.
function nodes.remember(u, ...)
  if call('HSET', user_key(u.name), ...) > 0 and not is_weighted(u) then call('PEXPIRE', user_key(u.name), USER_TTL) end
end

function nodes.is_ready(u) return lines.tag(u.up, u.member) end

-- At what tag a node is held at its cap; nil where it is not.
function nodes.cap_of(node)
  if node.path then return node.capped end
  return nodes.marks(node).capped
end

function nodes.set_cap(node, tag)
  local key = node.hash or user_key(node.name)
  node.capped = tag
  if tag then
    call('HSET', key, 'capped', tag)
    call('PEXPIRE', key, USER_TTL)
  else
    call('HDEL', key, 'capped')
  end
end

-- A tag moves, wherever it is; nothing is made of one that is nowhere.
function nodes.move_tag(node, change)
  local line, member = node.up, node.member
  local tag = lines.tag(line, member)
  if tag then return lines.set(line, member, change(tag)) end
  tag = nodes.cap_of(node)
  if tag then return nodes.set_cap(node, change(tag)) end
  tag = lines.own_tag(line, member)
  if tag then lines.keep(line, member, change(tag)) end
end

-- A weight is another one than that which was counted with: how far a node is ahead of the lowest is worth so much more,
-- or less.
function nodes.rescale(node, factor)
  local line = node.up
  nodes.move_tag(node, function(tag)
    local low = lines.low(line)
    return tag > low and low + (tag - low) * factor or tag
  end)
end

function nodes.is_somewhere(node)
  return lines.tag(node.up, node.member) or nodes.cap_of(node) or lines.own_tag(node.up, node.member)
end

function nodes.reweight(u)
  if not has_weights and u.weight == 1 then return end
  local counted = nodes.marks(u).counted
  if counted == u.weight then return end
  nodes.rescale(u, counted / u.weight)
  u.counted = u.weight
  if u.weight == 1 then
    call('HDEL', user_key(u.name), 'weight')
  else
    call('HSET', user_key(u.name), 'weight', u.weight)
  end
  if u.weight ~= 1 and nodes.is_ready(u) then
    call('PERSIST', user_key(u.name))
  else
    call('PEXPIRE', user_key(u.name), USER_TTL)
  end
  if not has_weights then
    has_weights = true
    call('HSET', state_key, 'weighted', 1)
  end
end

-- Into a line: at its clock, but not below the lowest tag, and at most half a service above it: its own or the mean.
-- Less than a whole one, so that nobody is served twice before a newcomer; more than nothing, so that newcomers, however
-- many there are, cannot keep the others from becoming the lowest. Never below the tag it left with, but for one that
-- was held at its cap, which gets some of what it is owed. first: whether there are others, low: the lowest tag of those.
-- In a partition the users of the other ones are among them.
function nodes.enter(node, service, first, low)
  local line = node.up
  if line.elsewhere and not (first and has_assigned) then
    first, low = true, first and math.min(low, line.elsewhere) or line.elsewhere
  end
  local own, entry = nodes.cap_of(node), nil
  if own then
    entry = (first and low or line.clock) - lines.CREDIT * line.mean
    nodes.set_cap(node, nil)
  else
    own = lines.own_tag(line, node.member)
    if line.mean > 0 then service = math.min(service, line.mean) end
    entry = first and math.max(low, math.min(line.clock, low + service / 2)) or line.clock
  end
  lines.set(line, node.member, own and math.max(own, entry) or entry)
end

-- The user may be served from now on; its next task costs this much.
function nodes.join(u, cost)
  nodes.reweight(u)
  if u.weight ~= 1 then call('PERSIST', user_key(u.name)) end
  local node = u
  while node.up do
    local line = node.up
    local first, low = lines.lowest(line)
    local was_empty = not first
    if has_assigned then first, low = assignments.lowest(u, line) end
    nodes.enter(node, cost / node.weight, first, low)
    if not was_empty then break end
    line.was_joined, line.is_changed = true, true
    node = line
  end
  if has_assigned then assignments.enter(u) end
  call('ZADD', users_key, now, u.name)
end

-- The tag is kept. What comes into an empty line next begins where this one ended, and its group leaves as well.
-- `is_capped`: it has work, and as much of it runs as may.
function nodes.leave(u, is_capped)
  local node = u
  local tag = nodes.is_ready(u)
  if tag and is_weighted(u) then call('PEXPIRE', user_key(u.name), USER_TTL) end
  while tag do
    local line = node.up
    lines.remove(line, node.member)
    if is_capped then nodes.set_cap(node, tag) else lines.keep(line, node.member, tag) end
    if line.size > 0 then return end
    line.clock, line.is_changed = math.max(line.clock, tag), true
    node = line
    tag = node.up and lines.tag(node.up, node.member)
  end
end

-- It waits for nothing that a cap would keep from running.
function nodes.forget_cap(u)
  local tag = nodes.cap_of(u)
  if not tag then return end
  nodes.set_cap(u, nil)
  lines.keep(u.up, u.member, tag)
end

-- What it had belongs to the time of the line that it has left.
function nodes.forget_own_tag(u)
  local line, member = u.up, u.member
  if nodes.cap_of(u) then nodes.set_cap(u, nil) end
  line.kept[member], line.leaving[member] = false, nil
  call('ZREM', line.left_key, member)
end

-- One service.
function nodes.charge(u, cost)
  local node = u
  while node.up do
    local line = node.up
    local tag, step = lines.tag(line, node.member), cost / node.weight
    line.clock, line.is_changed = math.max(line.clock + cost / lines.size(line), tag), true
    line.mean = lines.mean_after(line.mean, step)
    lines.set(line, node.member, tag + step)
    node = line
  end
end

-- What became known of a service after its start. One that is nowhere stands at the lowest. Where nobody is in line, nobody
-- waited for what was used: the clock comes along.
function nodes.charge_late(u, cost)
  if nodes.is_somewhere(u) or cost > 0 then nodes.reweight(u) end
  local node = u
  while node.up do
    local line, by = node.up, cost / node.weight
    if by > 0 and not nodes.is_somewhere(node) then lines.keep(line, node.member, lines.low(line)) end
    nodes.move_tag(node, function(tag)
      local moved = tag + by
      if by > 0 and line.mean > 0 then
        moved = tag + math.max(0, math.min(by, lines.low(line) + lines.LARGEST_DEBT * line.mean - tag))
      end
      if by > 0 and not lines.lowest(line) then line.clock, line.is_changed = math.max(line.clock, moved), true end
      return moved
    end)
    node = line
  end
end

-- What a user was served out of turn is held against it no longer, beyond the horizon.
function nodes.forgive(u)
  local line = u.up
  lines.flush(line)
  local found = call('ZRANGE', line.key, 0, 1, 'WITHSCORES')
  local others = tonumber(found[1] == u.member and found[4] or found[1] ~= u.member and found[2] or nil)
  if others then nodes.move_tag(u, function(tag) return math.min(tag, others + lines.HORIZON * line.mean) end) end
end
calls[#calls + 1] = function()
  nodes.known, nodes.everybody = {}, nil -- users in this call; the policy of everybody
  inherited = nil
  return NEXT
end
end

-- lib/choice.lua
-- What is done to users, in a queue that has no policies. See lib/govern.lua as well.

-- The user has servable work, of which the first task costs this much. True: it may be served now.
function plain.admit(user, cost)
  local u = nodes.user(user)
  if not nodes.is_ready(u) then nodes.join(u, cost) end
  return true
end

-- Reads what admitting a user needs, so that a key of another type shows before anything is written.
function plain.know(user)
  local u = nodes.user(user)
  nodes.is_ready(u)
  nodes.marks(u)
  if has_assigned then assignments.of(user) end
end

function plain.leave(u) nodes.leave(u) end

function plain.adjust(u, by) nodes.charge_late(u, by) end

-- Whoever served it out of turn does so no longer.
function plain.forgive(u) nodes.forgive(u) end

-- Nothing of it waits any more.
function plain.retire(u)
  nodes.forget_cap(u)
  choice.leave(u)
end

-- Many users come that may have been away.
function plain.expect(names)
  if not governed and #names > 1 then lines.learn(root, names) end
end

-- lib/fronts.lua
-- The front of a line: its lowest members, read at once and kept in order by tag, then name, while a call serves them. Tags in
-- it may be too low, never too high: they are mended when they come up.

-- resting, idle: members, and how many, that have to wait until all others had their turn. head, tail: places in tags and
-- names. tree: the key to read from, with the assignment that it belongs to; moved: what is to be written there.
function fronts.new(line, most, resting, idle)
  return {
    line = line, most = most, resting = resting, idle = idle, key = line.key,
    tags = {}, names = {}, head = 1, tail = 0, is_whole = false,
  }
end

function fronts.of_tree(name, line, most, resting, idle)
  local front = fronts.new(line, most, resting, idle)
  front.key, front.moved = assignments.tree_key(name, line), {}
  return front
end

local function rests(front, name)
  return front.resting and (front.resting.members[name] or front.idle.members[name])
end

-- Behind all that are lower, mostly at the end or near to it.
local function insert(front, name, tag, first)
  local tags, names, at = front.tags, front.names, front.tail
  while at >= first and (tags[at] > tag or (tags[at] == tag and names[at] > name)) do
    tags[at + 1], names[at + 1] = tags[at], names[at]
    at = at - 1
  end
  tags[at + 1], names[at + 1] = tag, name
  front.tail = front.tail + 1
end

-- Its tree may be behind: who is not in the line any more, and who has come further, is mended there.
local function mend(front, found)
  local line, unknown = front.line, {}
  for at = 1, #found, 2 do
    if line.tags[found[at]] == nil then unknown[#unknown + 1] = found[at] end
  end
  if #unknown > 0 then
    for at, tag in ipairs(call('ZMSCORE', line.key, unpack(unknown))) do line.tags[unknown[at]] = tonumber(tag or nil) or false end
  end
  for at = 1, #found, 2 do
    local tag = line.tags[found[at]]
    if tag ~= tonumber(found[at + 1]) then front.moved[found[at]] = true end
  end
end

function fronts.fill(front)
  local line = front.line
  lines.flush(line)
  if front.moved then fronts.close(front) end
  local most = front.most + (front.resting and front.resting.count + front.idle.count or 0)
  local found = call('ZRANGE', front.key, 0, most - 1, 'WITHSCORES')
  front.tags, front.names, front.head, front.tail = {}, {}, 1, 0
  front.is_whole, front.most = #found < 2 * most, front.most * 4
  front.last_name, front.last_tag = found[#found - 1], tonumber(found[#found])
  if front.moved then
    mend(front, found)
  elseif front.is_whole then
    line.size = #found / 2
  end
  local tags, names, known, tail = front.tags, front.names, line.tags, 0
  for at = 1, #found, 2 do
    local name = found[at]
    if not front.moved then
      tail = tail + 1
      known[name] = tonumber(found[at + 1])
      tags[tail], names[tail], front.tail = known[name], name, tail
    elseif known[name] then
      insert(front, name, known[name], 1)
    end
  end
  nodes.read_ahead(names)
end

-- The lowest member that does not rest, or nil.
function fronts.first(front)
  local known = front.line.tags
  while true do
    local head = front.head
    if head > front.tail then
      if front.is_whole then return nil end
      fronts.fill(front)
    else
      local name, tag = front.names[head], front.tags[head]
      local is_in = known[name]
      if is_in == tag and not rests(front, name) then
        if front.is_whole or tag < front.last_tag or (tag == front.last_tag and name <= front.last_name) then return name end
        fronts.fill(front)
      else
        if front.moved and is_in ~= tag then front.moved[name] = true end
        front.head = head + 1
        if is_in and is_in ~= tag then insert(front, name, is_in, head + 1) end
      end
    end
  end
end

-- Writes what is known into the tree.
function fronts.close(front)
  local up, gone, known = {}, {}, front.line.tags
  for name in pairs(front.moved) do
    if known[name] then
      up[#up + 1] = known[name]
      up[#up + 1] = name
    else
      gone[#gone + 1] = name
    end
  end
  if #up > 0 then call('ZADD', front.key, 'XX', unpack(up)) end
  if #gone > 0 then call('ZREM', front.key, unpack(gone)) end
  front.moved = {}
end

-- lib/assignments.lua
local ended_key
local release
local seen
do
-- Assignments: lists of users that workers serve, by the name that their client made of the list; '*' is everybody. A queue
-- whose workers all serve everybody pays for a look at `assigned`.
-- assignments         zset  names → ms of the last sign of life of one of their workers
-- assignment:<a>      set   the users
-- assignments:<u>     set   the assignments of a user; of '@<path>', those in whose trees the group stands
-- workers@<a>         set   the workers that serve it
-- ready@<a>, ready@<a>:<path>, reserved@<a>  zset  its tree: the lines with its users alone. A tag there is never above the
--                           true one, and who is not in line any more may still be there: both are mended when they come up
-- leases@<a>          zset  the same of `leases`
-- assignments-ended   set   those whose users are still to be released

local SILENT_MS, TOUCH_MS, RELEASED, KEPT_TAGS = 60000, 1000, 100, 10000
local names_key
local of_member, lows

local function users_key_of(name) return prefix .. 'assignment:' .. name end
local function of_key(member) return prefix .. 'assignments:' .. member end

function assignments.tree_key(name, line)
  return prefix .. line.base .. '@' .. name .. (line.path and ':' .. line.path or '')
end

-- Names, '*' not among them.
function assignments.of(member)
  local names = of_member[member]
  if not names then
    names = call('SMEMBERS', of_key(member))
    of_member[member] = names
  end
  return names
end

function assignments.lives(name)
  if seen[name] == nil then seen[name] = tonumber(call('ZSCORE', names_key, name) or 0) end
  return seen[name] > now - SILENT_MS
end

local function has_live(names)
  for _, name in ipairs(names) do
    if assignments.lives(name) then return true end
  end
  return false
end

-- Whether some live worker may serve the user.
function assignments.serve(user) return assignments.lives('*') or has_live(assignments.of(user)) end

-- Those of a line that went down or came in.
function assignments.lower(line)
  local of_tree = {}
  for member in pairs(line.lowered) do
    for _, name in ipairs(line.tags[member] and assignments.of(member) or {}) do
      local scored = of_tree[name] or { 'LT' }
      scored[#scored + 1], scored[#scored + 2], of_tree[name] = line.tags[member], member, scored
    end
  end
  line.lowered = {}
  for name, scored in pairs(of_tree) do call('ZADD', assignments.tree_key(name, line), unpack(scored)) end
end

-- The groups of a user that is in line stand in the trees as well.
local function enter_groups(u, name)
  local node = u.up
  while node.up do
    if call('SADD', of_key(node.member), name) == 1 then of_member[node.member] = nil end
    call('ZADD', assignments.tree_key(name, node.up), 'LT', lines.tag(node.up, node.member), node.member)
    node = node.up
  end
end

function assignments.enter(u)
  for _, name in ipairs(assignments.of(u.name)) do
    if u.up ~= root then enter_groups(u, name) end
    local node = u
    while node.up do
      local of_line, tag = lows[node.up], lines.tag(node.up, node.member)
      if of_line and of_line[name] ~= nil then of_line[name] = math.min(of_line[name] or tag, tag) end
      node = node.up
    end
  end
end

-- Services were charged.
function assignments.forget_lows() lows = {} end

function assignments.remove_group(name, line)
  call('ZREM', assignments.tree_key(name, line.up), line.member)
  call('SREM', of_key(line.member), name)
  of_member[line.member] = nil
end

-- The user goes to another group.
function assignments.withdraw(u)
  for _, name in ipairs(assignments.of(u.name)) do
    local line, member = u.up, u.name
    call('ZREM', assignments.tree_key(name, line), member)
    while line.up and call('EXISTS', assignments.tree_key(name, line)) == 0 do
      assignments.remove_group(name, line)
      line = line.up
    end
  end
end

-- The lowest tag in the tree of an assignment, or false.
local function low_in(name, line)
  local of_line = lows[line] or {}
  lows[line] = of_line
  if of_line[name] == nil then
    local front = fronts.of_tree(name, line, 2)
    local first = fronts.first(front)
    fronts.close(front)
    of_line[name] = first and line.tags[first] or false
  end
  return of_line[name]
end

-- What those who are served have come to in a line: the lowest tag of all trees in it. False where nobody is.
local function low_of_served(line)
  local low = false
  for _, name in ipairs(call('ZRANGEBYSCORE', names_key, '(' .. now - SILENT_MS, '+inf')) do
    local of_tree = name ~= '*' and low_in(name, line)
    if of_tree and (not low or of_tree < low) then low = of_tree end
  end
  return low
end

local function raise_to(node, low)
  local line = node.up
  local tag, least = lines.tag(line, node.member), low - lines.CREDIT * line.mean
  if not tag or tag >= least then return false end
  lines.set(line, node.member, least)
  return true
end

-- '*' came back: who was served by nobody meanwhile is owed as little as one that was at its cap. Returns whether its tag
-- changed.
function assignments.raise(node)
  if has_live(assignments.of(node.member)) then return false end
  local low = low_of_served(node.up)
  return low and raise_to(node, low)
end

-- The lowest member, and its tag, among which a user enters a line: the highest of the assignments that have it. By the
-- lower one it would pass those whom the other one serves.
function assignments.lowest(u, line)
  local first, low = false, nil
  if assignments.lives('*') then
    first, low = lines.lowest(line)
    local served = first and has_returned and low_of_served(line)
    if served then low = math.max(low, served - lines.CREDIT * line.mean) end
  end
  for _, name in ipairs(assignments.of(u.name)) do
    local of_tree = assignments.lives(name) and low_in(name, line)
    if of_tree and (not first or of_tree > low) then first, low = true, of_tree end
  end
  return first, low
end

local function touch(name)
  call('ZADD', names_key, now, name)
  seen[name] = now
end

-- The users of a list that is new, those that are in line with the lowest tags among those that were served before.
local function put_in_tree(name, us)
  local served, low = {}, {}
  for _, u in ipairs(us) do
    local node = u
    while node.up and lines.tag(node.up, node.member) do
      local line, tag = node.up, lines.tag(node.up, node.member)
      served[node] = assignments.lives('*') or has_live(assignments.of(node.member))
      if served[node] then low[line] = math.min(low[line] or math.huge, tag) end
      node = line
    end
  end
  for node, was_served in pairs(served) do
    if not was_served and low[node.up] then raise_to(node, low[node.up]) end
  end
end

local function copy_leases(name, users)
  local members, found = {}, {}
  for at, user in ipairs(users) do members[at * 2 - 1], members[at * 2] = 'critical:' .. user, 'normal:' .. user end
  for at, look in ipairs(call('ZMSCORE', leases_key, unpack(members))) do
    if look then
      found[#found + 1] = look
      found[#found + 1] = members[at]
    end
  end
  if #found > 0 then call('ZADD', prefix .. 'leases@' .. name, unpack(found)) end
end

local function register(name, users)
  local us = {}
  call('SREM', ended_key, name)
  call('SADD', users_key_of(name), unpack(users))
  for at, user in ipairs(users) do us[at] = nodes.user(user) end
  put_in_tree(name, us)
  for _, u in ipairs(us) do
    call('SADD', of_key(u.name), name)
    of_member[u.name] = nil
    local tag = nodes.is_ready(u)
    if tag then
      call('ZADD', assignments.tree_key(name, u.up), tag, u.name)
      enter_groups(u, name)
      local first = governed and lines.tag(reservations.line, u.name)
      if first then call('ZADD', assignments.tree_key(name, reservations.line), first, u.name) end
    end
  end
  copy_leases(name, users)
  call('HINCRBY', state_key, 'assigned', 1)
end

-- A claim by a worker. False: the list must be sent. The first step of all that is written.
function assignments.note(name, users, worker)
  local at = tonumber(call('ZSCORE', names_key, name) or nil)
  if name == '*' then
    local was_away = (at or 0) <= now - SILENT_MS
    if not at or at < now - TOUCH_MS then
      touch(name)
      assignments.tidy()
    end
    if was_away and call('ZCOUNT', names_key, '(' .. now - SILENT_MS, '+inf') > 1 then assignments.begin_return() end
    return true
  end
  if not at and not users then return false end
  if not at then
    if not has_assigned then touch('*') end -- those that serve everybody were not noted so far
    has_assigned = true
    register(name, users)
  end
  if call('SADD', prefix .. 'workers@' .. name, worker) == 1 or not at or at < now - TOUCH_MS then
    touch(name)
    assignments.tidy()
  end
  return true
end

function assignments.begin_return()
  has_returned = true
  call('HSET', state_key, 'returning', 1)
  call('DEL', prefix .. 'sweep-lines')
  call('RPUSH', prefix .. 'sweep-lines', '0 ')
end

-- The assignment ends: nobody wakes its workers, and its users are released by steps.
function assignments.finish(name)
  if call('ZREM', names_key, name) == 0 then return end
  seen[name] = nil
  call('SADD', ended_key, name)
  call('UNLINK', prefix .. 'workers@' .. name, prefix .. 'waiting:' .. name, prefix .. 'leases@' .. name,
    prefix .. 'ready@' .. name, prefix .. 'reserved@' .. name)
  call('HINCRBY', state_key, 'assigned', -1)
end

function release(name, user)
  local u = nodes.user(user)
  choice.know(user)
  if governed then gates.running(u) end
  call('SREM', of_key(user), name)
  of_member[user] = nil
  local line = u.up
  while line.up do
    call('UNLINK', assignments.tree_key(name, line))
    assignments.remove_group(name, line)
    line = line.up
  end
  choice.forgive(u)
end

-- Those for whom something fails stay, and are noted; returns how many do not, the first ones of the list from then on.
local function release_all(name, users)
  local released = 0
  for at, user in ipairs(users) do
    local is_done, failure = pcall(release, name, user)
    if is_done then
      released = released + 1
      users[at], users[released] = users[released], user
    else
      damage().note(user, failure)
    end
  end
  return released
end

local function release_some()
  local left = RELEASED
  while left > 0 do
    local name = call('SRANDMEMBER', ended_key)
    if not name then break end
    local users = call('SRANDMEMBER', users_key_of(name), left)
    local released = release_all(name, users)
    if released > 0 then call('SREM', users_key_of(name), unpack(users, 1, released)) end
    left = left - #users - 1
    if call('EXISTS', users_key_of(name)) == 0 then call('SREM', ended_key, name) end
  end
  lows = {}
end

-- Assignments that gave no sign of life end; those that ended release some of their users.
function assignments.tidy()
  local oldest = call('ZRANGEBYSCORE', names_key, '-inf', now - SILENT_MS, 'LIMIT', 0, 1)[1]
  if oldest == '*' then
    call('ZREM', names_key, '*')
  elseif oldest then
    assignments.finish(oldest)
  end
  release_some()
  if call('HGET', state_key, 'assigned') == '0' and call('EXISTS', ended_key) == 0 then
    call('HDEL', state_key, 'assigned', 'returning')
    call('DEL', names_key)
  end
end

-- A worker says goodbye.
function assignments.leave(name, worker)
  call('SREM', prefix .. 'workers@' .. name, worker)
  if name ~= '*' and call('EXISTS', prefix .. 'workers@' .. name) == 0 then assignments.finish(name) end
end

-- Where nobody of `*` is served, the lowest tag may stay where it is: of own tags only so many are kept.
function assignments.cut_own_tags(line)
  local many = call('ZCARD', line.left_key) - KEPT_TAGS
  if many > 0 then call('ZREMRANGEBYRANK', line.left_key, 0, math.min(many, RELEASED) - 1) end
end

-- A lane of a user got its first delivery.
function assignments.note_lease(member, user, at)
  for _, name in ipairs(assignments.of(user)) do call('ZADD', prefix .. 'leases@' .. name, 'LT', at, member) end
end

-- The lanes of an assignment whose looks are in a range, at most so many, and when it is for the next one.
function assignments.lanes(name, from, to, most)
  local key = prefix .. 'leases@' .. name
  local members = call('ZRANGEBYSCORE', key, from, to, 'LIMIT', 0, most)
  local due = {}
  for at, look in ipairs(#members > 0 and call('ZMSCORE', leases_key, unpack(members)) or {}) do
    if not look then
      call('ZREM', key, members[at])
    elseif tonumber(look) > tonumber(to) then
      call('ZADD', key, look, members[at])
    else
      due[#due + 1] = members[at]
    end
  end
  return due
end

function assignments.next_look(name)
  return tonumber(call('ZRANGE', prefix .. 'leases@' .. name, 0, 0, 'WITHSCORES')[2] or math.huge)
end
calls[#calls + 1] = function()
  names_key, ended_key = prefix .. 'assignments', prefix .. 'assignments-ended'
  of_member, seen, lows = {}, {}, {}
  return NEXT
end
end

-- lib/gates.lua
local slots
do
-- Gates: when a user may be served.
-- parked  zset  users with a backlog that are held back → ms at which they may go on by themselves, inf where that takes
--               an event; '*' → the end of the pause of everybody

gates.NEVER = 1 / 0 -- until an event opens the gate: a task ends, the policy changes

function gates.running(u)
  u.running = u.running or call('XLEN', stream_key('critical', u.name)) + call('XLEN', stream_key('normal', u.name))
  return u.running
end

-- The slots of all live workers, 0 until one has told.
function gates.slots()
  slots = slots or tonumber(call('HGET', state_key, 'slots') or 0)
  return slots
end

-- Most tasks that may run at once. Second: whether that changes as workers come and go.
local function most_running(p)
  local most = p.max_running or gates.NEVER
  if not p.max_share then return most, false end
  local share = math.max(1, math.floor(p.max_share * gates.slots() + 1e-9))
  return math.min(most, share), share < most
end

-- Nil is now, else ms, or gates.NEVER.
function gates.at(u)
  local p, most, by_share = u.policy, nil, false
  u.is_by_share = false
  if is_absent(u.name) then return gates.NEVER end
  local paused = rawget(p, 'paused')
  if paused == true then return gates.NEVER end
  if paused and paused > now then return paused end
  if p.max_running or p.max_share then most, by_share = most_running(p) end
  if p.breaker_failures and nodes.marks(u).open_until > 0 then
    if u.open_until > now then return u.open_until end
    most = 1 -- half open: one task at a time shows whether it works again
  end
  if most and gates.running(u) >= most then
    u.is_by_share = by_share
    return gates.NEVER
  end
  if p.rate_us then
    local at = rate_opens_at(nodes.marks(u).tat, p.rate_us, p.rate_burst)
    if at > now_us then return math.ceil(at / 1000) end
  end
  return nil
end

-- A task of the user was delivered.
function gates.note_start(u)
  if u.running then u.running = u.running + 1 end
  local rate = u.policy.rate_us
  if not rate then return end
  u.tat = rate_after_start(nodes.marks(u).tat, rate)
  nodes.remember(u, 'tat', u.tat, 'tat_of', rate)
end

function gates.park(u, at)
  local p = u.policy
  -- Only a change of its own policy lets it go on, or the end of one of its tasks: the defaults do not matter.
  local is_own = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
  if at == gates.NEVER and is_own and not u.is_by_share then return end
  if u.is_by_share then call('HSET', state_key, 'held_by_share', 1) end
  call('ZADD', prefix .. 'parked', at, u.name)
  note_moment(at, u.name)
end
calls[#calls + 1] = function()
  slots = nil
  return NEXT
end
end

-- lib/reserve.lua
do
-- Reservations: who has less running than its `min_running` is served before all others.
-- reserved  zset  users that are ready and below their min_running → tag

function reservations.begin()
  reservations.line = lines.new({}, 'reserved', prefix .. 'reserved', '')
  lines.by_path[reservations.line.key] = reservations.line
end

-- One slot of all workers is never reserved. Where they have not told how many there are, nothing is known of it.
local most_reserved
function reservations.of(u)
  local least = u.policy.min_running
  if not least then return nil end
  if not most_reserved then
    most_reserved = gates.slots() > 0 and gates.slots() - 1 or gates.NEVER
  end
  return math.min(least, most_reserved)
end

-- Puts the user where it belongs, also one whose reservation came from a default that has been taken back.
function reservations.update(u)
  local least, tag = reservations.of(u), nodes.is_ready(u)
  if tag and least and gates.running(u) < least then
    lines.tag(reservations.line, u.name)
    lines.set(reservations.line, u.name, tag)
  elseif lines.lowest(reservations.line) and lines.tag(reservations.line, u.name) then
    lines.remove(reservations.line, u.name)
  end
end
calls[#calls + 1] = function()
  most_reserved = nil
  return NEXT
end
end

-- lib/breaker.lua
-- The breaker of a user opens after so many failures within a window; when its time is over, one success closes it.

function gates.note_end(u, ok)
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
    nodes.remember(u, 'open_until', now + p.breaker_cooldown, 'fails', 0, 'trips', (call('HGET', key, 'trips') or 0) + 1)
  else
    nodes.remember(u, 'fails', fails, 'fails_since', since)
  end
end

-- lib/quota.lua
do
-- Quotas: how many tasks of a user may wait.
function governing.waiting(user)
  return call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user)) +
    call('ZCARD', place_key('scheduled', user)) + call('SCARD', place_key('deferred', user)) +
    call('ZCARD', place_key('held', user))
end

-- Whether tasks in line may go for those that are asked for, and so many would fit beside what is not in line.
function governing.may_drop(user, asked)
  local p = nodes.user(user).policy
  local in_line = call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user))
  return p.mode == 'drop_oldest' and choice.waiting(user) - in_line + asked <= p.max_queued
end

-- How many tasks are too many, when so many more come.
function governing.excess(user, more)
  local most = nodes.user(user).policy.max_queued
  return most and math.max(0, choice.waiting(user) + more - most) or 0
end

-- Until when the user, or everybody, is paused: 0 where nobody is, -1 without an end.
local function pause_of(user)
  local own = rawget(nodes.user(user).policy, 'paused')
  local all = choice.all_paused
  if own == true or all == true then return -1 end
  return math.max(own or 0, all or 0)
end

-- In how many ms the user's tasks, as fast as they went lately, make room for so many, or its pause ends; -1: nobody knows.
function governing.retry_after(user, excess)
  local paused = pause_of(user)
  if paused < 0 then return -1 end
  if paused > now then return paused - now end
  local blob = call('GET', prefix .. 'metrics:' .. user)
  if not blob then return 1000 end
  local recent, span = recent_services(blob)
  if recent * 3600 < 1 then return 60000 end
  return math.max(100, math.min(3600000, math.ceil(excess * span / recent)))
end
end

-- lib/govern.lua
local alone
local parked_key
do
-- What policies decide: who is in line, and who is held back.
governing.user, governing.gate, governing.note_end = nodes.user, gates.at, gates.note_end -- for others

function governing.begin()
  reservations.begin()
  governing.read_policies()
end

-- The pause of everybody is a flag that claims read: nobody leaves `ready` for it. True, or until when.
function governing.read_policies()
  nodes.read_policies()
  governing.all_paused = (nodes.everybody.paused == true or (nodes.everybody.paused or 0) > now) and nodes.everybody.paused
end

-- Its backlog is gone, or may not be served: `is_capped`, because as much of it runs as may.
function governing.leave(u, is_capped)
  nodes.leave(u, is_capped)
  reservations.update(u)
end

function governing.hold_back(u, at)
  choice.leave(u, at == gates.NEVER and rawget(u.policy, 'paused') ~= true)
  gates.park(u, at)
  if on_held_back then on_held_back(u.name) end
end

function governing.admit(user, cost)
  local u = nodes.user(user)
  if nodes.is_ready(u) then return not choice.all_paused end
  local at = gates.at(u)
  if not at then
    nodes.join(u, cost)
    reservations.update(u)
    return not choice.all_paused
  end
  gates.park(u, at)
  call('ZADD', users_key, now, user)
  return false
end

local function head_cost(user)
  local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
  return id and cost_of_task(user, id)
end

-- Reads what a review needs, before anything is written.
function governing.know_places(user)
  choice.know(user)
  head_cost(user)
  gates.running(nodes.user(user))
end

-- Puts the user where it belongs after something changed. True: it may be served now, and could not before.
function governing.review(user)
  nodes.known[user] = nil -- what happened in this script is read anew
  if on_reviewed then on_reviewed(user) end
  call('ZREM', parked_key, user)
  local u = nodes.user(user)
  local cost, tag = head_cost(user), nodes.is_ready(u)
  local at = cost and gates.at(u)
  if tag and at then choice.hold_back(u, at) end
  if tag and not cost then choice.leave(u) end
  if not cost then nodes.forget_cap(u) end
  if tag and cost and not at then reservations.update(u) end
  if tag or not cost then return false end
  return choice.admit(user, cost)
end

-- What fails for one user is noted: it is looked at again later, and no longer for this.
function alone(act, user)
  local is_done, may_run = pcall(act, user)
  if is_done then return may_run end
  damage().note(user, may_run)
  call('ZREM', parked_key, user)
end
function governing.review_alone(user) return alone(choice.review, user) end

-- Those whose time has come.
function governing.unpark(most, woken)
  for _, user in ipairs(call('ZRANGEBYSCORE', parked_key, '-inf', now, 'LIMIT', 0, most)) do
    if user == '*' then
      call('ZREM', parked_key, user)
      tell_all_workers()
    elseif choice.review_alone(user) then
      woken[user] = (woken[user] or 0) + 1
    end
  end
end

-- A task of the user ended. One that is ready stays so, unless its breaker opened. Returns as `review` does.
local function look_at_freed(user)
  local u = nodes.user(user)
  if u.opened or not nodes.is_ready(u) then return choice.review(user) end
  reservations.update(u)
  return false
end
function governing.freed(user) return alone(look_at_freed, user) end

function governing.retire(u)
  call('ZREM', parked_key, u.name)
  plain.retire(u)
end

-- What became known while it ran is charged, or given back, afterwards.
function governing.adjust(u, by)
  nodes.charge_late(u, by)
  reservations.update(u)
end

-- Whoever served it out of turn does so no longer.
function governing.forgive(u)
  nodes.forgive(u)
  reservations.update(u)
end

function governing.ends_matter(u)
  local p = u.policy
  return p.max_running or p.max_share or p.min_running or p.breaker_failures
end
calls[#calls + 1] = function()
  parked_key = prefix .. 'parked'
  return NEXT
end
end
end

local function govern()
  if governed then return end
  choice, governed = setmetatable(governing, { __index = plain }), governing
  governing.begin()
end


-- Made where something failed.
local known_damage
function damage()
  if known_damage then return known_damage end

  -- lib/damage.lua
  -- What is broken of one user stays its own: what fails for a user is left alone, told of, and looked at again by and by.
  -- damaged  zset  users → ms of the next look
  -- damage   hash  user → what went wrong, of the first hundred

  local function new_damage()
    local it = {}
    local damaged_key, errors_of = prefix .. 'damaged', prefix .. 'damage'
    local LOOK_MS, LOOKS, KEPT = 10000, 20, 100
    local try = redis.pcall

    it.next_ms = now + LOOK_MS

    -- Commands that read keys of a user, each as what it should be.
    local OF_A_USER = { { 'ZCARD', 'critical' }, { 'ZCARD', 'normal' }, { 'ZCARD', 'scheduled' }, { 'ZCARD', 'held' },
      { 'SCARD', 'deferred' }, { 'ZCARD', 'lapsing' }, { 'ZCARD', 'schedules' }, { 'ZCARD', 'expiring' },
      { 'ZCARD', 'held-keys' }, { 'XLEN', 'critical-stream' }, { 'XLEN', 'normal-stream' }, { 'LLEN', 'announcements' },
      { 'HLEN', 'offers' }, { 'HLEN', 'user' }, { 'STRLEN', 'keeper' } }
    local RARELY_READ = { { 'ZCARD', 'dead' }, { 'STRLEN', 'policy' }, { 'STRLEN', 'metrics' }, { 'HLEN', 'bytes' },
      { 'ZCARD', 'bytes-expiring' }, { 'HLEN', 'xcom-bytes' }, { 'ZCARD', 'xcom-spaces' }, { 'SCARD', 'assignments' } }
    local OF_A_TASK = { { 'STRLEN', 'body' }, { 'HLEN', 'task' }, { 'LLEN', 'errors' }, { 'STRLEN', 'result' },
      { 'SCARD', 'needs' }, { 'SCARD', 'uses' }, { 'SCARD', 'feeds' }, { 'SCARD', 'informed' }, { 'XLEN', 'chunks' },
      { 'STRLEN', 'ends' }, { 'SCARD', 'children' } }

    local function broken_of(reads, whose)
      for _, read in ipairs(reads) do
        local key = place_key(read[2], whose)
        local reply = try(read[1], key)
        if type(reply) == 'table' and reply.err then return key end
      end
    end

    -- Some of those that wait, and that run.
    local function some_tasks(user)
      local ids = {}
      for _, where in ipairs({ 'critical', 'normal', 'scheduled', 'held' }) do
        for _, id in ipairs(try('ZRANGE', place_key(where, user), 0, 1)) do ids[#ids + 1] = id end
      end
      for _, lane in ipairs({ 'critical', 'normal' }) do
        for _, entry in ipairs(try('XRANGE', stream_key(lane, user), '-', '+', 'COUNT', LOOKS)) do ids[#ids + 1] = entry[2][2] end
      end
      for _, id in ipairs(try('SRANDMEMBER', place_key('deferred', user), LOOKS)) do ids[#ids + 1] = id end
      return ids
    end

    -- What went wrong with a user, and with which key of it. id: of the task with which, where that is known.
    function it.told(user, failure, id)
      local text = text_of(failure)
      if not string.find(text, '^WRONGTYPE') or string.find(text, prefix, 1, true) then return text end
      local key = broken_of(OF_A_USER, user) or broken_of(RARELY_READ, user) or id and broken_of(OF_A_TASK, user .. ':' .. id)
      for _, other in ipairs(not key and some_tasks(user) or {}) do key = key or broken_of(OF_A_TASK, user .. ':' .. other) end
      return key and text .. ': ' .. key or text
    end

    -- Raises the error again, with what it is about.
    function it.fail(user, failure, id) error({ err = it.told(user, failure, id) }, 0) end

    -- Raises the error again where it is not the user's.
    function it.note(user, failure, id)
      if is_of_all(text_of(failure)) then error(failure, 0) end
      local text = it.told(user, failure, id)
      call('ZADD', damaged_key, it.next_ms, user)
      if call('HLEN', errors_of) < KEPT or call('HEXISTS', errors_of, user) == 1 then
        call('HSET', errors_of, user, string.sub(text, 1, 500))
      end
      call('HSET', state_key, 'damaged', 1)
      note_moment(it.next_ms, user)
    end

    -- Acts for a user, and notes what fails.
    function it.attempt(user, act, ...)
      local is_done, failure = pcall(act, ...)
      if not is_done then it.note(user, failure) end
    end

    -- It leaves the line in which it was found, whatever its policy says.
    function it.leave(user, line)
      if lines.tag(line, user) then nodes.leave({ name = user, member = user, up = line, weight = 1, policy = {} }) end
      if governed and lines.tag(reservations.line, user) then lines.remove(reservations.line, user) end
      nodes.known[user] = nil
    end

    local function check(user)
      for _, read in ipairs(OF_A_USER) do call(read[1], place_key(read[2], user)) end
      for _, lane in ipairs({ 'critical', 'normal' }) do
        local id = call('ZRANGE', place_key(lane, user), 0, 0)[1]
        if id then
          call('STRLEN', body_key(user, id))
          call('HLEN', task_key(user, id))
        end
      end
    end

    local function look_for_silent(user)
      for _, lane in ipairs({ 'critical', 'normal' }) do
        if call('EXISTS', stream_key(lane, user)) == 1 then
          local member = lane .. ':' .. user
          call('ZADD', leases_key, 'NX', now, member)
          if has_assigned then assignments.note_lease(member, user, now) end
        end
      end
    end

    -- It stands where its own keys say, in each list of the queue that leads to it.
    function it.come_back(user, woken)
      check(user)
      for where, all in pairs({ scheduled = due_key, lapsing = prefix .. 'lapsing', schedules = prefix .. 'schedules',
        batches = prefix .. 'batches', ['held-keys'] = prefix .. 'held-turns' }) do
        local first = call('ZRANGE', place_key(where, user), 0, 0, 'WITHSCORES')[2]
        if first then call('ZADD', all, 'LT', math.floor(first), user) end
      end
      local expires = call('ZRANGE', place_key('expiring', user), 0, 0, 'WITHSCORES')
      if expires[1] then deadlines.note(user, expires[1], expires[2]) end
      if call('EXISTS', prefix .. 'announcements:' .. user) == 1 then call('ZADD', prefix .. 'announcements', 'NX', now_us, user) end
      look_for_silent(user)
      local may_run
      if governed then
        may_run = governed.review(user)
      else
        local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
        may_run = id and not nodes.is_ready(nodes.user(user)) and choice.admit(user, cost_of_task(user, id))
      end
      if may_run then woken[user] = (woken[user] or 0) + 1 end
      call('ZREM', damaged_key, user)
      call('HDEL', errors_of, user)
    end

    -- Those whose time has come. One that stands still, as the clock was set back, or is to for longer by now, does so.
    function it.look_again(woken)
      for _, user in ipairs(call('ZRANGEBYSCORE', damaged_key, '-inf', now, 'LIMIT', 0, LOOKS)) do
        if is_frozen(user) then
          local left = call('PTTL', frozen_key(user))
          call('ZADD', damaged_key, left >= 0 and string.format('%d', now + left) or 'inf', user)
        elseif has_moved and moved_to(user) then
          call('ZREM', damaged_key, user)
          call('HDEL', errors_of, user)
        else
          it.attempt(user, it.come_back, user, woken)
        end
      end
      if call('EXISTS', damaged_key) == 0 then call('HDEL', state_key, 'damaged') end
    end

    local function take_out(hand)
      local stream = stream_key(hand.lane, hand.user)
      try('XACK', stream, 'workers', hand.stream_id)
      try('XDEL', stream, hand.stream_id)
      if try('XLEN', stream) ~= 0 then return end
      try('DEL', stream)
      try('ZREM', leases_key, hand.lane .. ':' .. hand.user)
    end

    local function does_not_run(hand, limited)
      local key = task_key(hand.user, hand.id)
      local of = limited and try('HGET', key, 'limited')
      if type(of) == 'string' then pcall(limited.stop, of, hand.user, hand.id) end
      try('HDEL', key, 'stream_id', 'worker', 'started', 'limited')
      if hand.new_fields == 6 then try('HDEL', key, 'state', 'lane', 'score') else try('HSET', key, 'state', 'queued') end
      if hand.counts then try('HINCRBY', key, 'attempt', -1) end
    end

    -- A task that was popped, back to its place: as far as it was delivered, or held, it is not. `limited`: of the caller.
    function it.put_back(hand, limited)
      local held = limited and try('HGET', task_key(hand.user, hand.id), 'held')
      if type(held) == 'string' then pcall(limited.unhold, hand.user, hand.id, held) end
      if hand.stream_id then take_out(hand) end
      if hand.new_fields then does_not_run(hand, limited) end
      try('ZADD', place_key(hand.lane, hand.user), hand.score, hand.id)
      hand.id = nil
    end

    -- What failed half way is scheduled as before: all but those that are done.
    function it.leave_scheduled(user, done, failure)
      it.note(user, failure)
      local waiting = place_key('scheduled', user)
      local failed = try('ZRANGEBYSCORE', waiting, '-inf', '(' .. now + 1, 'LIMIT', 0, #done + 1)[#done + 1]
      for _, lane in ipairs(failed and { 'critical', 'normal' } or {}) do
        if try('ZREM', place_key(lane, user), failed) == 1 then count(lane, -1) end
      end
      if failed and type(try('HSET', task_key(user, failed), 'state', 'scheduled')) == 'number' then
        call('HDEL', task_key(user, failed), 'queued')
      end
      if #done > 0 then count('scheduled', -try('ZREM', waiting, unpack(done))) end
      call('ZREM', due_key, user)
    end

    local function remove_from_places(user, id)
      for _, where in ipairs({ 'critical', 'normal', 'scheduled' }) do
        if try('ZREM', place_key(where, user), id) == 1 then count(where, -1) end
      end
    end

    -- One that did not learn of the end of a task goes on waiting for it.
    function it.leave_deferred(user, id, dependency)
      if try('HGET', task_key(user, id), 'state') ~= 'deferred' then return end
      remove_from_places(user, id)
      if try('SADD', place_key('deferred', user), id) == 1 then count('deferred', 1) end
      try('SADD', needs_key(user, id), dependency)
    end

    -- Nobody depends on it any more (lib/depend.lua).
    local function unlink(user, id)
      local linked = try('HGET', task_key(user, id), 'linked')
      if type(linked) ~= 'string' or call('EXISTS', uses_key(user, id), ends_key(user, id), children_key(user, id)) > 0 then return end
      if tonumber(linked) > 1 then try('PEXPIRE', result_key(user, id), linked) end
      try('HDEL', task_key(user, id), 'linked')
    end

    -- Of a task that could not be added, nothing is there. What waits for its id goes on waiting for it.
    function it.take_back(user, id, dependencies)
      remove_from_places(user, id)
      pcall(deadlines.forget, user, id)
      try('SREM', place_key('deferred', user), id)
      for _, dependency in ipairs(dependencies) do
        local feeds = feeds_key(user, dependency)
        try('SREM', feeds, id)
        if call('EXISTS', feeds, informed_key(user, dependency)) == 0 then unlink(user, dependency) end
      end
      call('DEL', task_key(user, id), needs_key(user, id), uses_key(user, id), ends_key(user, id))
      if call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0 then call('HSET', task_key(user, id), 'linked', 1) end
    end

    -- Those whose bodies were to be written last. (Their users may be among those that came lately, or be looked at for
    -- what is due: that is of no consequence.)
    function it.take_back_all(tasks, bodies, failure)
      local is_new = {}
      for at = 1, #bodies, 2 do is_new[bodies[at]] = true end
      for _, task in ipairs(tasks) do
        local user, id, needs = task[1], task[2], task[6]
        if is_new[body_key(user, id)] then it.take_back(user, id, needs and needs[3] or {}) end
      end
      error(failure, 0)
    end

    -- A held task that failed to be let in is not in its lane as well. line: of its user at that key.
    function it.leave_held(user, line, failure)
      it.note(user, failure)
      local first = try('ZRANGE', line, 0, 0)[1]
      for _, lane in ipairs(first and { 'critical', 'normal' } or {}) do try('ZREM', place_key(lane, user), first) end
    end

    -- Its group is gone, and with it who has what: each delivery is its worker's again, whose lease begins anew.
    function it.mend_group(stream, user)
      try('XGROUP', 'CREATE', stream, 'workers', '0')
      for _, entry in ipairs(call('XRANGE', stream, '-', '+')) do
        local holder = call('HGET', task_key(user, entry[2][2]), 'worker') or 'nobody'
        call('XCLAIM', stream, 'workers', holder, '0', entry[1], 'FORCE', 'JUSTID')
      end
    end

    local function is_before(one, other)
      local ms, seq = string.match(one, '(%d+)-(%d+)')
      local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
      if ms ~= other_ms then return tonumber(ms) < tonumber(other_ms) end
      return tonumber(seq) < tonumber(other_seq)
    end

    -- An entry under its id, which a stream takes at its end only.
    local function insert_entry(stream, stream_id, id)
      local entries = call('XRANGE', stream, '-', '+')
      entries[#entries + 1] = { stream_id, { 'id', id } }
      table.sort(entries, function(one, other) return is_before(one[1], other[1]) end)
      call('DEL', stream)
      for _, entry in ipairs(entries) do call('XADD', stream, entry[1], unpack(entry[2])) end
    end

    -- A delivery is not in its stream, or nobody's there: the stream was lost, or its group.
    function it.mend_stream(stream, lane, user, id, stream_id)
      local found = call('XRANGE', stream, stream_id, stream_id)[1]
      if found and found[2][2] ~= id then return end -- of the same millisecond, in a stream that is newer
      if not found then insert_entry(stream, stream_id, id) end
      it.mend_group(stream, user)
      call('ZADD', leases_key, 'NX', now, lane .. ':' .. user)
    end

    return it
  end
  known_damage = new_damage()
  return known_damage
end

-- The user has servable work, of which the first task costs this much. False: a policy holds it back.
local function admit(user, cost) return choice.admit(user, cost) end

-- What a service cost beyond what was charged at its start; less than nothing is given back.
local function adjust(user, by) choice.adjust(nodes.user(user), by) end

-- When the user may be served: nil is now, else ms, or math.huge where that takes an event.
local function gate_of(user)
  if governed then return gates.at(nodes.user(user)) end
  return is_absent(user) and gates.NEVER or nil
end

-- Whether some live worker may serve the user.
local function is_served(user) return not has_assigned or assignments.serve(user) end

-- A task was taken out of a lane of the user.
local function retire(user)
  if call('EXISTS', place_key('critical', user), place_key('normal', user)) == 0 then choice.retire(nodes.user(user)) end
end
calls[#calls + 1] = function()
  choice = plain
  if has_policies then govern() end
  known_damage = nil
  return NEXT
end

-- lib/first_moment.lua
-- Users by their first moment, so that one user's many cost the others nothing.
-- all  zset  user → ms of its first moment, or of its last turn where more than that is over
-- own  zset  what one user has → ms

-- It had its turn: if it has more that is over, it comes after all those that wait since before now. Returns when that is,
-- or nil where nothing is left.
local function end_turn(all, own, user)
  local first = call('ZRANGE', own, 0, 0, 'WITHSCORES')[2]
  if not first then
    call('ZREM', all, user)
    return nil
  end
  local at = math.max(now, math.floor(first))
  call('ZADD', all, at, user)
  return at
end

-- Returns 1, or 0 where it was not there. One that had its turn stays behind the others.
local function take_moment(all, own, user, member)
  if call('ZREM', own, member) == 0 then return 0 end
  local first = call('ZRANGE', own, 0, 0, 'WITHSCORES')[2]
  if first then call('ZADD', all, 'GT', math.floor(first), user) else call('ZREM', all, user) end
  return 1
end

-- lib/loans.lua
-- Limits over all users, in a queue with partitions. Each key has one partition for its home, by a hash of it: all places
-- are there, and lent to where tasks wait. What is lent is told by two numbers that only grow: `granted`, which the home
-- alone raises, and `returned`, which the borrower alone raises (a bounded counter: Balegas et al., SRDS 2015). So whoever
-- carries them may come late, twice or never: a borrower never knows more of `granted`, nor the home of `returned`, than
-- there is, and no place is ever in two partitions. An `epoch` names a loan from its first place to its last; it is the
-- home's, and never used again. A rate is lent as a whole, to one partition at a time, for a second at most.
-- Where others wait, a place that is free again is no longer one's own, beyond a share that may be kept: it goes to whose
-- turn it is. One that was given by turn (`fresh`) is good for one start.
-- What a partition that is gone has borrowed can be forfeited: its homes forget the loan, whose epoch is never taken again. It
-- learns of that before it serves, as that has a revision, and what it has is outdated then, as by a limit that changed.
-- loan:<k>      hash  of a borrower: epoch, granted, returned; of: the most by which it was granted, and changed: as
--                     the limit was when it asked; keep: how many it may
--                     keep while others wait, -1 where none do; fresh; since: ms when it began to ask; asked: 1, the home
--                     knows that it waits; excess: what the home knows to run without a place; lease, lease_until
--                     (us), starts: it has the rate, and how many may still start; seen, seen_until: its last lease
-- loans:<k>     hash  of the home. <partition>: a row, see ROW; own, keep, fresh: its own places while others wait; waits,
--                     rate_waits: how many partitions do; clock, pass: turns; holder, lease, lease_until, starts: of the
--                     rate; poked, poked_at: who was told that its turn at the rate has come
-- loans-closed  hash  home → the last epoch of a loan of it that is over
-- exchanges     zset  keys of which there is something to be asked or told → ms when

local function new_loans()
  local it = {}
  local exchanges_key = prefix .. 'exchanges'
  it.exchanges_key = exchanges_key
  local said = call('HMGET', prefix .. 'settings', 'partition', 'partitions')
  local parts = tonumber(said[2] or 1)
  it.own = tonumber(said[1] or nil)
  it.is_divided = it.own ~= nil and parts > 1
  it.LEASE_US = 1000000
  it.LINGER_MS = 1000 -- for which an idle place is kept that nobody waits for
  it.RETRY_MS, it.LONGEST_MS, it.EACH_MS = 250, 15000, 5 -- until who asked asks again
  local ROW = { 'epoch', 'granted', 'returned', 'need', 'users', 'pass', 'excess', 'keep', 'rate_need', 'changed' }
  local LOAN = { 'epoch', 'granted', 'returned', 'of', 'changed', 'keep', 'fresh', 'since', 'lease', 'lease_until', 'starts', 'seen',
    'seen_until', 'asked', 'excess' }
  local LEDGER = { 'own', 'keep', 'fresh', 'waits', 'rate_waits', 'clock', 'pass', 'holder', 'lease', 'lease_until', 'starts',
    'poked', 'poked_at' }

  function it.loan_key(k) return prefix .. 'loan:' .. k end
  function it.ledger_key(k) return prefix .. 'loans:' .. k end
  function it.home_of(k) return tonumber(string.sub(redis.sha1hex(k), 1, 8), 16) % parts end
  function it.is_home(k) return it.home_of(k) == it.own end

  function it.loan(k)
    local fields, loan = call('HMGET', it.loan_key(k), unpack(LOAN)), {}
    for at, name in ipairs(LOAN) do loan[name] = tonumber(fields[at] or nil) or (name == 'keep' and -1 or 0) end
    return loan
  end

  function it.new_row() return { epoch = 0, granted = 0, returned = 0, need = 0, users = 0, pass = 0, excess = 0, keep = -1, rate_need = 0, changed = 0 } end

  local function row_in(text)
    local row, at = {}, 0
    for number in string.gmatch(text, '%S+') do
      at = at + 1
      row[ROW[at]] = tonumber(number)
    end
    return row
  end

  function it.row_text(row)
    local texts = {}
    for at, name in ipairs(ROW) do texts[at] = string.format('%.17g', row[name]) end
    return table.concat(texts, ' ')
  end

  -- Places that are not at home: `excess` is what runs elsewhere without one, as there was no limit when it began.
  function it.lent_to(row) return row.granted - row.returned + row.excess end

  function it.ledger(k)
    local ledger, flat = { rows = {}, lent = 0 }, call('HGETALL', it.ledger_key(k))
    for _, name in ipairs(LEDGER) do ledger[name] = 0 end
    for at = 1, #flat, 2 do
      local partition = tonumber(flat[at])
      if partition then
        local row = row_in(flat[at + 1])
        ledger.rows[partition], ledger.lent = row, ledger.lent + it.lent_to(row)
      else
        ledger[flat[at]] = tonumber(flat[at + 1])
      end
    end
    return ledger
  end

  -- The limit is another one since: what does not run goes back, as it may be too many now.
  function it.is_outdated(l, loan) return l.most < loan.of or loan.changed ~= l.changed end

  local function by_turn(l, of) return math.max(of.keep, l.running + l.let_in) + of.fresh end

  -- Of the limit of a key: what of it this partition may use.
  function it.apply(l)
    l.most, l.loans = l.max, it
    l.changed = l.changed + forfeited_at -- both only grow
    if it.is_home(l.key) then
      local ledger = it.ledger(l.key)
      l.ledger = ledger
      if l.max then
        l.max = l.max - ledger.lent
        if ledger.waits > 0 then l.max = math.min(l.max, ledger.own, by_turn(l, ledger)) end
      end
      if not l.rate_us then return end
      if ledger.lease > 0 and ledger.lease_until > now_us then
        l.starts = ledger.holder == it.own and ledger.starts or 0
        return
      end
      -- Who had it has not said how much it used.
      if ledger.lease > 0 and ledger.holder ~= it.own then
        l.tat = math.max(l.tat, ledger.lease_until) + ledger.starts * l.rate_us
      end
      if ledger.rate_waits > 0 then l.starts = 0 end
    else
      local loan = it.loan(l.key)
      l.loan = loan
      if l.max then
        l.max = loan.granted - loan.returned
        if loan.keep >= 0 then l.max = math.min(l.max, by_turn(l, loan)) end
        if it.is_outdated(l, loan) then l.max = math.min(l.max, l.running) end
      end
      if l.rate_us then l.starts = loan.lease_until > now_us and loan.starts or 0 end
    end
  end

  -- There is something to ask or to tell.
  function it.note(k, at)
    call('ZADD', exchanges_key, 'LT', at, k)
    note_moment(at, nil)
  end

  -- Since places were asked for.
  local function has_changed(l) return l.most and it.is_outdated(l, l.loan) end

  -- A task waits here. Where the limit has changed since it was asked for places, it is asked again: by turns of those who wait
  -- here, as its home comes to it after all other keys.
  function it.wants(l)
    if l.ledger then
      if l.ledger.lent > 0 or (l.ledger.lease > 0 and l.ledger.holder ~= it.own) then it.note(l.key, now) end
    elseif l.loan.since == 0 then
      l.loan.since = now
      call('HSET', it.loan_key(l.key), 'since', now_text)
      it.note(l.key, now)
    elseif has_changed(l) then
      it.note(l.key, now)
    end
  end

  -- Whether something is done for those who wait here.
  function it.asks(l)
    if l.ledger then return call('ZSCORE', exchanges_key, l.key) ~= false end
    return l.loan.since > 0 and not has_changed(l)
  end

  -- Places have become free: those that others wait for go to them.
  function it.freed(k, l)
    if not (l and l.loans) then -- nothing limits it any more, or a pause alone
      if call('EXISTS', it.loan_key(k), it.ledger_key(k)) > 0 then it.note(k, now) end
    elseif l.ledger then
      if l.ledger.waits > 0 then it.note(k, now) end
    elseif l.loan.excess > 0 then
      it.note(k, now)
    elseif l.loan.granted > l.loan.returned then
      local is_asked_for = l.loan.keep >= 0 and l.loan.granted - l.loan.returned > l.loan.keep
      it.note(k, is_asked_for and now or now + it.LINGER_MS)
    end
  end

  -- A task takes a place.
  function it.take(l)
    local of = l.ledger or l.loan
    if of.fresh <= 0 then return end
    of.fresh = of.fresh - 1
    call('HINCRBY', l.ledger and it.ledger_key(l.key) or it.loan_key(l.key), 'fresh', -1)
  end

  -- One more has started by a rate that is lent.
  function it.note_start(l)
    if l.ledger and l.ledger.lease > 0 and not l.starts then -- over: what it may have used is in the time that is written
      call('HDEL', it.ledger_key(l.key), 'holder', 'lease', 'lease_until', 'starts')
    end
    if not l.starts then return end
    l.starts = l.starts - 1
    call('HINCRBY', l.ledger and it.ledger_key(l.key) or it.loan_key(l.key), 'starts', -1)
    if l.starts <= 0 then it.note(l.key, now) end
  end

  -- Until who waits asks again, as what it was told may have been lost: the more rarely the longer it waits, and the more keys
  -- there are, so that the many of one user cost others little.
  local many
  function it.retry_ms(since, least)
    many = many or call('ZCARD', exchanges_key)
    return math.max(least, math.min(it.LONGEST_MS, now - since), many * it.EACH_MS)
  end

  function it.put_off(k, at)
    call('ZADD', exchanges_key, at, k)
    note_moment(at, nil)
  end

  function it.save(k, loan)
    local flat = {}
    for _, name in ipairs(LOAN) do flat[#flat + 1], flat[#flat + 2] = name, string.format('%.17g', loan[name]) end
    call('HSET', it.loan_key(k), unpack(flat))
  end

  -- The last epoch of a loan of that home that is over.
  local closed_key = prefix .. 'loans-closed'
  function it.closed(home) return tonumber(call('HGET', closed_key, home) or 0) end

  function it.close(home, epoch)
    if epoch > it.closed(home) then call('HSET', closed_key, home, string.format('%.0f', epoch)) end
  end

  -- Nothing is to be asked. What it has of places is in use; of nothing nothing is kept, but its last lease, that it is not
  -- taken twice.
  function it.rest(k, loan)
    if loan.epoch > 0 or loan.excess > 0 then return it.over(k) end
    if loan.seen_until > now_us then return it.put_off(k, math.ceil(loan.seen_until / 1000) + 1) end
    call('DEL', it.loan_key(k))
    it.over(k)
  end

  function it.over(k) call('ZREM', exchanges_key, k) end

  return it
end

local function new_limits()
  local it, rules, known, freed = {}, {}, {}, {}
  local held_key, turns_key = prefix .. 'held', prefix .. 'held-turns'
  local LOOK_MS, UNLIMITED = 1000, 100 -- a look even if nothing was freed; how many are let in when a limit is gone
  local KEYS_DUE, USERS = 200, 20 -- looked at in one call; of one key, beyond those that are let in
  local KEYS_OF_A_USER = 5 -- looked at in its turn
  local LANES = 50 -- counted in one call
  local PAUSE_MS = 3600000 -- between two looks at a key that is paused
  local KEPT_SHARE = 20 -- a place is kept for this part of the wait, and afterwards none for so many times as long
  local function held_of(user, k) return place_key('held', user) .. ':' .. k end
  local function users_of(k) return prefix .. 'held-users:' .. k end
  local function running_of(k) return prefix .. 'running:' .. k end
  local function rate_of(k) return prefix .. 'limit-rate:' .. k end
  local function let_in_of(k) return prefix .. 'let-in:' .. k end
  local function kept_of(k) return prefix .. 'kept:' .. k end
  local function offers_of(user) return prefix .. 'offers:' .. user end
  local function keys_of(user) return prefix .. 'held-keys:' .. user end

  -- Keys as a text, each behind its length: '7::openai6:u:more'.
  local function packed(keys)
    local parts = {}
    for at, k in ipairs(keys) do parts[at] = #k .. ':' .. k end
    return table.concat(parts)
  end

  local function unpacked(stored)
    local keys, at = {}, 1
    while stored and at < #stored do
      local colon = string.find(stored, ':', at, true)
      local last = colon + tonumber(string.sub(stored, at, colon - 1))
      keys[#keys + 1], at = string.sub(stored, colon + 1, last), last + 1
    end
    return keys
  end

  it.keys_in = unpacked

  -- Of a key that all users share, in a queue with partitions; else nil.
  local loans
  local function loans_of(k)
    local first = string.byte(k)
    if first ~= 58 and first ~= 61 then return nil end -- ':' and '='
    loans = loans or new_loans()
    return loans.is_divided and loans or nil
  end

  -- What is allowed

  local function rule(record)
    local found = rules[record]
    if found == nil then
      local f = call('HMGET', prefix .. 'limit:' .. record, 'by', 'max', 'rate_us', 'burst', 'uncounted', 'paused', 'changed')
      found = (f[1] or f[6]) and { max = tonumber(f[2]), rate_us = tonumber(f[3]), burst = tonumber(f[4]),
        uncounted = f[5], paused = f[6], changed = tonumber(f[7] or 0) }
      rules[record] = found
    end
    return found
  end

  local function rule_for(k)
    local user, template, text = string.match(k, '^([^:=]*)=([^:]*):(.*)$')
    if not user then return rule(k) end
    return rule(user .. ':' .. text) or (user ~= '' and rule(user .. '=' .. template)) or rule('=' .. template)
  end

  -- Nil: nothing limits it.
  local function limit(k)
    local l = known[k]
    if l == nil then
      local of = rule_for(k)
      l = of and (of.max or of.rate_us or of.paused) and {
        key = k, max = of.max, rate_us = of.rate_us, burst = of.burst, uncounted = of.uncounted, paused = of.paused,
        changed = of.changed,
        running = call('SCARD', running_of(k)), let_in = call('ZCARD', let_in_of(k)),
        has_line = call('EXISTS', users_of(k)) == 1,
      }
      if l and l.rate_us then
        local tat, of_rate = string.match(call('GET', rate_of(k)) or '', '^(%S+) (%S+)$')
        l.tat = rate_tat(tat, of_rate, l.rate_us)
      end
      if l and (l.max or l.rate_us) and loans_of(k) then loans.apply(l) end
      known[k] = l
    end
    return l or nil
  end

  -- How many more may start, beside those that have a place in hand.
  local function room(l)
    if l.uncounted or l.paused then return 0 end
    local most = l.max and l.max - l.running or math.huge
    if l.rate_us then most = math.min(most, rate_allows(l.tat, l.rate_us, l.burst), l.starts or math.huge) end
    return most - l.let_in
  end

  it.limit, it.room = limit, room

  -- Places that are taken, also of a key that nothing limits any more.
  function it.used(k) return it.running(k) + call('ZCARD', let_in_of(k)) end
  function it.running(k) return call('SCARD', running_of(k)) end

  -- It is read anew when it is asked for.
  function it.forget(k) known[k] = nil end

  function it.set_tat(l, tat)
    l.tat = tat
    call('SET', rate_of(l.key), string.format('%.17g %.17g', tat, l.rate_us), 'PX',
      math.max(1, math.ceil((tat - now_us) / 1000)))
  end

  -- What is held under it may start at this ms (0 is now, -1: when somebody says so), of how many places, at which rate.
  function it.outlook(k)
    local l = limit(k)
    if not l then return 0, '', '', '' end
    local allowed = l.rate_us and math.max(0, rate_allows(l.tat, l.rate_us, l.burst) - l.let_in)
    local left = l.max and math.max(0, l.max - l.running - l.let_in)
    if left == 0 and l.loans and l.most > 0 then left = 1 end -- places come to where workers are
    return l.paused and -1 or 0, left or '', l.rate_us or '', allowed or ''
  end

  local function limits_of(keys)
    local limits = { keys = keys }
    for _, k in ipairs(keys) do limits[#limits + 1] = limit(k) end
    return limits
  end

  local function keys_in(user, body)
    local name, heading = heading_in(body)
    local own, keys = ':' .. name, {}
    for at = 2, heading and #heading or 1 do
      local text, template, is_own = heading[at][1], heading[at][2], heading[at][3]
      keys[#keys + 1] = (is_own and user or '') .. (template and '=' .. template or '') .. ':' .. text
    end
    if keys[1] ~= own and keys[2] ~= own then keys[#keys + 1] = own end
    return keys
  end

  -- Whether any task has a place in hand.
  local function any_in_hand() return has_in_hand + (counts.in_hand or 0) > 0 end

  -- Nil: nothing limits a task with this body, and it has no place in hand from before.
  function it.of(user, body)
    local limits = limits_of(keys_in(user, body))
    return (limits[1] or any_in_hand()) and limits
  end

  -- The first limit that keeps a task from starting; `mine`: keys of which it has a place. One that has its turn at the
  -- key `turn` needs room of the keys before, and of those behind a turn as well, where others wait: that order of keys
  -- is why two tasks never send each other from line to line while there is room.
  local function blocked(limits, turn, mine)
    for _, l in ipairs(limits) do
      if mine[l.key] then
        if l.uncounted or l.paused or room(l) < 0 then return l end
      elseif room(l) < 1 or (l.has_line and l.key > turn) then
        return l
      end
    end
  end

  -- Places in hand

  local function member_of(user, id) return user .. ':' .. id end

  -- A list of keys, and a set.
  local function in_hand(user, id)
    local mine = unpacked(call('HGET', offers_of(user), id))
    for _, k in ipairs(mine) do mine[k] = true end
    return mine
  end

  -- Beside those that it has, which may be of limits that are gone.
  local function hand_out(user, id, limits, until_ms, mine)
    local member, keys = member_of(user, id), { unpack(mine) }
    for _, l in ipairs(limits) do
      l.let_in = l.let_in + call('ZADD', let_in_of(l.key), until_ms, member)
      if not mine[l.key] then
        keys[#keys + 1] = l.key
        if l.loans then l.loans.take(l) end
      end
    end
    if keys[1] then count('in_hand', call('HSET', offers_of(user), id, packed(keys))) end
  end

  local function free(k, places)
    if not freed[k] then freed[#freed + 1] = k end
    freed[k] = (freed[k] or 0) + places
  end

  local function take_away(user, id, mine, may_keep)
    local member = member_of(user, id)
    for _, k in ipairs(mine) do
      if may_keep then call('SREM', kept_of(k), member) end
      if call('ZREM', let_in_of(k), member) == 1 and known[k] then known[k].let_in = known[k].let_in - 1 end
    end
    count('in_hand', -call('HDEL', offers_of(user), id))
  end

  -- Others may have them.
  local function give_back(user, id, mine)
    if not mine[1] then return end
    take_away(user, id, mine, true)
    for _, k in ipairs(mine) do free(k, 1) end
  end

  -- What limits a task with this body, for those who ask why it waits. Per limit: key, most or '', us between two starts or
  -- '', burst or '', tat, how many run, of these its user's or '', how many are let in, users that wait, held tasks of its
  -- own before it, those of others, whether it has a place in hand, whether it is paused.
  function it.look_at(user, id, body)
    local MOST_COUNTED, MOST_USERS = 1000, 500
    local function running_by_user(k)
      if call('SCARD', running_of(k)) > MOST_COUNTED then return '' end
      local own, start = 0, user .. ':'
      for _, member in ipairs(call('SMEMBERS', running_of(k))) do
        if string.sub(member, 1, #start) == start then own = own + 1 end
      end
      return own
    end
    local function turns_of_others(k, own)
      local before, turns = call('ZRANK', users_of(k), user) or MOST_USERS, 0
      for at, other in ipairs(call('ZRANGE', users_of(k), 0, MOST_USERS - 1)) do
        local tasks = other ~= user and call('ZCARD', held_of(other, k)) or 0
        turns = turns + math.min(tasks, own + (at <= before and 1 or 0))
      end
      return turns
    end
    local shown, mine = {}, any_in_hand() and in_hand(user, id) or {}
    for at, l in ipairs(it.of(user, body) or {}) do
      local own = call('ZRANK', held_of(user, l.key), id) or call('ZCARD', held_of(user, l.key))
      shown[at] = { l.key, l.most or l.max or '', l.rate_us or '', l.burst or '', string.format('%.0f', l.tat or 0), l.running,
        running_by_user(l.key), l.let_in, call('ZCARD', users_of(l.key)), own, turns_of_others(l.key, own),
        mine[l.key] and 1 or 0, l.paused and 1 or 0 }
    end
    return shown
  end

  -- Lines

  -- Where all places are taken by what runs, each end tells: such keys, however many, are looked at some at a time, and
  -- at moments that they share.
  local function next_look(l)
    local at = now + LOOK_MS
    if not l or l.let_in > 0 then return at end
    if l.paused then return now + PAUSE_MS end -- who ends the pause has it looked at
    if l.rate_us then
      local opens = math.ceil(rate_opens_at(l.tat, l.rate_us, l.burst) / 1000)
      if opens > now then return opens end
    end
    if l.uncounted or room(l) >= 1 then return at end
    local turns = math.max(1, math.ceil(call('ZCARD', held_key) / KEYS_DUE))
    return math.ceil((now + turns * LOOK_MS) / LOOK_MS) * LOOK_MS
  end

  -- Of names, and of texts that all users share, there are as many as limits. Of other keys one user may have any number.
  local function may_be_many(k) return string.byte(k) ~= 58 end -- ':'
  it.may_be_many = may_be_many
  function it.may_be_of_one(k) return string.byte(k) ~= 58 and string.byte(k) ~= 61 end

  -- What fails here costs no more than a turn.
  function it.note_key(user, k)
    redis.pcall('ZADD', keys_of(user), now_text, k)
    redis.pcall('ZADD', turns_key, 'LT', now_text, user)
  end

  -- Where there is room, those before it cannot use it: they are looked at again. `first`: of its user.
  local function stand_in_line(l, user, id, score, first)
    call('ZADD', held_of(user, l.key), first and -1 or score, id)
    local is_new = call('ZADD', users_of(l.key), 'NX', now_us, user) == 1
    l.has_line = true
    if is_new and may_be_many(l.key) then it.note_key(user, l.key) end
    if room(l) >= 1 then free(l.key, 1) elseif l.loans then l.loans.wants(l) end
    local at = next_look(l)
    if call('ZADD', held_key, 'NX', at, l.key) == 1 then note_moment(at, user) end
  end

  local function leave_line(user, id, k)
    call('ZREM', held_of(user, k), id)
    if call('EXISTS', held_of(user, k)) == 1 then return end
    if may_be_many(k) then pcall(take_moment, turns_key, keys_of(user), user, k) end
    call('ZREM', users_of(k), user)
    if call('EXISTS', users_of(k)) == 1 then return end
    call('ZREM', held_key, k)
    if known[k] then known[k].has_line = false end
  end

  -- What can be done with a task

  function it.must_wait(limits, user, id)
    limits.mine = any_in_hand() and in_hand(user, id) or {}
    limits.full = blocked(limits, '', limits.mine)
    return limits.full
  end

  function it.hold(limits, user, id, lane, score)
    local key = task_key(user, id)
    give_back(user, id, limits.mine)
    call('HSET', key, 'state', 'queued', 'lane', lane, 'score', score, 'held', limits.full.key)
    if limits.keys[2] then
      call('HSET', key, 'keys', packed(limits.keys))
      if not limits.mine[1] then call('HSET', key, 'held_since', now) end
    end
    call('ZADD', place_key('held', user), score, id)
    stand_in_line(limits.full, user, id, score)
  end

  -- Returns whether it was let in.
  function it.start(limits, user, id)
    local member, keys = member_of(user, id), {}
    local was_let_in = limits.mine[1] ~= nil
    if was_let_in then
      take_away(user, id, limits.mine, limits.keys[2])
      if limits.keys[2] then
        if call('GET', prefix .. 'keeper:' .. user) == id then call('DEL', prefix .. 'keeper:' .. user) end
        call('HDEL', task_key(user, id), 'keys', 'held_since')
      end
    end
    for at, l in ipairs(limits) do
      keys[at] = l.key
      if call('SADD', running_of(l.key), member) == 1 then l.running = l.running + 1 end
      if l.loans and not limits.mine[l.key] then l.loans.take(l) end
      if l.rate_us then
        it.set_tat(l, rate_after_start(l.tat, l.rate_us))
        if l.loans then l.loans.note_start(l) end
        local next_at = next_look(l)
        if l.has_line and call('ZADD', held_key, 'XX', 'CH', next_at, l.key) == 1 then note_moment(next_at, user) end
      end
    end
    if keys[1] then call('HSET', task_key(user, id), 'limited', packed(keys)) end
    return was_let_in
  end

  -- The delivery of a task is over; `counted`: the field of the task.
  function it.stop(counted, user, id)
    for _, k in ipairs(unpacked(counted)) do
      if call('SREM', running_of(k), member_of(user, id)) == 1 then
        if known[k] and known[k].loans then
          known[k] = nil -- its room may be others'
        elseif known[k] then
          known[k].running = known[k].running - 1
        end
        free(k, 1)
      end
    end
  end

  -- It left Redis, or goes back to its lane.
  function it.unhold(user, id, k)
    call('ZREM', place_key('held', user), id)
    leave_line(user, id, k)
    call('HDEL', task_key(user, id), 'held')
  end

  -- A task that waits ends: held under a key, or in its lane.
  function it.drop(user, id, k)
    if k then it.unhold(user, id, k) end
    if any_in_hand() then give_back(user, id, in_hand(user, id)) end
  end

  -- Places that are in hand, and not used

  local function others_wait(keys, user)
    for _, k in ipairs(keys) do
      local first = call('ZRANGE', users_of(k), 0, 1)
      if first[2] or (first[1] and first[1] ~= user) then return k end
    end
  end

  -- Where others wait for them, a task gives its places back, and is held again. Returns whether it did.
  local function withdraw(user, id, is_late)
    local mine = in_hand(user, id)
    local of_task = call('HMGET', task_key(user, id), 'lane', 'held', 'keys')
    if of_task[2] and not is_late then return false end -- it keeps them
    local lane = not of_task[2] and of_task[1]
    local score = lane and call('ZSCORE', place_key(lane, user), id)
    local k = others_wait(mine, user)
    if score and not k then return false end
    local limits = limits_of(of_task[3] and unpacked(of_task[3]) or mine)
    limits.mine, limits.full = mine, k and limit(k)
    if not score or not limits.full then
      give_back(user, id, mine)
    else
      call('ZREM', place_key(lane, user), id)
      it.hold(limits, user, id, lane, score)
    end
    return true
  end

  -- The user cannot, or does not, use its places: others may. Returns whether it had any.
  local without = {}
  function it.take_back(user)
    if not any_in_hand() or without[user] then return false end
    local ids = call('HKEYS', offers_of(user))
    without[user] = #ids == 0
    for _, id in ipairs(ids) do withdraw(user, id) end
    return #ids > 0
  end

  -- Nobody has served them for a while, or they kept a place in vain.
  local function take_back_late(k)
    for _, member in ipairs(call('ZRANGEBYSCORE', let_in_of(k), '-inf', now, 'LIMIT', 0, USERS)) do
      local user, id = string.match(member, '^([^:]*):(.*)$')
      if call('HEXISTS', offers_of(user), id) == 0 then -- that key was lost
        take_away(user, id, { k }, true)
      elseif withdraw(user, id, true) then
        retire(user)
      else
        call('ZADD', let_in_of(k), 'XX', now + LOOK_MS, member)
      end
    end
  end

  -- The user may have become able to use a place.
  function it.came_back(user)
    local id = call('ZRANGE', place_key('held', user), 0, 0)[1]
    local k = id and call('HGET', task_key(user, id), 'held')
    if k then free(k, UNLIMITED) end
  end

  -- Turns

  local function can_run(user)
    return is_served(user) and not (governed and governed.all_paused or gate_of(user))
  end

  -- Two keys that are always busy are never free at once: a task that has its turn at one of them, and must wait for the
  -- other, keeps its place for a while. One of each user; and nobody keeps a place who waits for one that is kept, so that
  -- they cannot wait for each other.
  local function keep(l, full, user, id, mine, since)
    local key = prefix .. 'keeper:' .. user
    local keeper = call('GET', key)
    if keeper and not (keeper == id and mine[1]) then return false end
    if call('EXISTS', kept_of(full.key)) == 1 then return false end
    local span = math.max(LOOK_MS, math.floor((now - tonumber(since or now)) / KEPT_SHARE))
    call('SADD', kept_of(l.key), member_of(user, id))
    for _, k in ipairs(mine) do call('ZADD', let_in_of(k), 'XX', now + span, member_of(user, id)) end
    hand_out(user, id, { l }, now + span, mine)
    call('SET', key, id, 'PX', span * (KEPT_SHARE + 1))
    return true
  end

  -- The first held task of the user, whose turn it is at a key. Returns whether it was let in; else it waits for another.
  local function take_turn(user, k, woken)
    local id = call('ZRANGE', held_of(user, k), 0, 0)[1]
    local key = task_key(user, id)
    local of_task = call('HMGET', key, 'lane', 'score', 'keys', 'held_since')
    local limits = limits_of(of_task[3] and unpacked(of_task[3]) or { k })
    local mine = of_task[3] and in_hand(user, id) or {}
    local full = blocked(limits, k, mine)
    if full then
      leave_line(user, id, k)
      local is_kept = limit(k) and keep(limit(k), full, user, id, mine, of_task[4])
      call('HSET', key, 'held', full.key)
      stand_in_line(full, user, id, of_task[2], is_kept)
      return false
    end
    call('ZADD', place_key(of_task[1], user), of_task[2], id) -- before it leaves the line: that key may be broken
    if limits[1] then
      call('HLEN', offers_of(user))
      hand_out(user, id, limits, now + LOOK_MS, mine)
      without[user] = nil
    end
    it.unhold(user, id, k)
    if admit(user, cost_of_task(user, id)) then woken[user] = (woken[user] or 0) + 1 end
    return true
  end

  -- Nil: it cannot run now.
  local function give_turn(user, k, at, woken)
    if not can_run(user) then return nil end
    call('ZADD', users_of(k), at, user)
    return take_turn(user, k, woken)
  end

  -- Those that cannot run now come after all others, for as long as a look lasts. Returns how many it let in, and whether
  -- there are users that it did not look at.
  local function let_in(k, l, most, woken)
    local given, passed, last = 0, {}, now_us + most + USERS
    for turn = 1, most + USERS do
      local user = call('ZRANGE', users_of(k), 0, 0)[1]
      if given == most or (l and room(l) < 1) or not user or passed[user] then return given, false end
      local is_done, was_let_in = pcall(give_turn, user, k, now_us + turn, woken)
      passed[user] = not is_done or was_let_in == nil
      if not is_done then damage().leave_held(user, held_of(user, k), was_let_in) end
      if passed[user] then call('ZADD', users_of(k), last + turn + LOOK_MS * 1000, user) end
      if is_done and was_let_in then given = given + 1 end
    end
    return given, tonumber(call('ZRANGE', users_of(k), 0, 0, 'WITHSCORES')[2] or math.huge) <= last
  end

  -- Places come from elsewhere for those who can run. Who could not, for whatever reason, may be able to by now.
  local function ask_for_places(l)
    if not l.loans or l.paused or l.uncounted or room(l) >= 1 or l.loans.asks(l) then return end
    if it.need(l.key) > 0 then l.loans.wants(l) end
  end

  -- Returns how many it let in.
  local function look(k, most, woken)
    local l = limit(k)
    if l and l.let_in > 0 then take_back_late(k) end
    local places = l and room(l) or UNLIMITED
    local given, is_cut = 0, false
    if places > 0 then given, is_cut = let_in(k, l, math.min(places, most), woken) end
    local user = call('ZRANGE', users_of(k), 0, 0)[1]
    if not user then return given end
    if l then ask_for_places(l) end
    is_cut = is_cut or not l or (given == most and given < places)
    local at = is_cut and now or next_look(l)
    call('ZADD', held_key, at, k)
    note_moment(at, user)
    return given
  end

  -- Those that may start now.
  function it.let_in(k, woken)
    if call('ZSCORE', held_key, k) then look(k, UNLIMITED, woken) end
  end

  -- How many of the tasks that are held under a key could start, and of how many users: of the first ones, and of others
  -- as many in proportion.
  function it.need(k)
    local tasks, users, seen = 0, 0, call('ZRANGE', users_of(k), 0, USERS - 1)
    for _, user in ipairs(seen) do
      local is_read, can = try_alone(can_run, user)
      if is_read and can then tasks, users = tasks + call('ZCARD', held_of(user, k)), users + 1 end
    end
    if #seen < USERS then return tasks, users end
    local share = call('ZCARD', users_of(k)) / USERS
    return math.ceil(tasks * share), math.ceil(users * share)
  end

  -- As many as became free, in the order of keys. Returns whether any was let in.
  function it.pass_on(woken)
    local keys, given = freed, 0
    freed = {}
    table.sort(keys)
    for _, k in ipairs(keys) do
      if call('ZSCORE', held_key, k) then given = given + look(k, math.min(keys[k], UNLIMITED), woken) end
      if loans_of(k) then loans.freed(k, limit(k)) end
    end
    return given > 0
  end

  -- What changes with a limit: what ran before there was one, and what waits

  local function count_delivery(user, id)
    local key = task_key(user, id)
    local limits = it.of(user, call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
    local counted = limits and unpacked(call('HGET', key, 'limited'))
    for _, l in ipairs(limits or {}) do
      if l.uncounted and call('SADD', running_of(l.key), member_of(user, id)) == 1 then
        l.running = l.running + 1
        if l.loans then l.loans.note(l.key, now) end -- the home has to know
        counted[#counted + 1] = l.key
      end
    end
    if counted and counted[1] then call('HSET', key, 'limited', packed(counted)) end
  end

  -- Some lanes at each claim, as that is rare.
  local is_counting = false
  local function count_running()
    local cursor = call('HGET', state_key, 'recount')
    if not cursor then return end
    local page = call('ZSCAN', leases_key, cursor, 'COUNT', LANES)
    for at = 1, #page[2], 2 do
      local lane, user = string.match(page[2][at], '^([^:]*):(.*)$')
      for _, entry in ipairs(call('XRANGE', stream_key(lane, user), '-', '+')) do count_delivery(user, entry[2][2]) end
    end
    is_counting = page[1] ~= '0'
    if is_counting then
      call('HSET', state_key, 'recount', page[1])
      return
    end
    for _, record in ipairs(call('SMEMBERS', prefix .. 'uncounted')) do
      call('HDEL', prefix .. 'limit:' .. record, 'uncounted')
    end
    call('DEL', prefix .. 'uncounted')
    call('HDEL', state_key, 'recount')
    rules, known = {}, {}
  end

  -- A limit was changed by which many keys that were filled may be held: some at each claim. Until all were looked at, keys
  -- come by turns of users, also those that were looked at a moment ago.
  local horizon = now
  local function look_at_all()
    local cursor = call('HGET', state_key, 'relook')
    if not cursor then return end
    horizon = now + LOOK_MS
    local page = call('ZSCAN', held_key, cursor, 'COUNT', KEYS_DUE)
    for at = 1, #page[2], 2 do
      if string.find(page[2][at], '^[^:]*=') then call('ZADD', held_key, 'XX', 'LT', now, page[2][at]) end
      if loans_of(page[2][at]) then loans.note(page[2][at], now) end
    end
    if page[1] == '0' then call('HDEL', state_key, 'relook') else call('HSET', state_key, 'relook', page[1]) end
    is_counting = is_counting or page[1] ~= '0'
  end

  -- Whether there is more to count, or to look at.
  function it.is_counting() return is_counting end

  -- Some keys of a user, of which `held` knows when they are due.
  local function take_keys_of(user, choose)
    local own = keys_of(user)
    for _, k in ipairs(call('ZRANGEBYSCORE', own, '-inf', horizon, 'LIMIT', 0, KEYS_OF_A_USER)) do
      local at = tonumber(call('ZSCORE', held_key, k) or nil)
      if not at then
        call('ZREM', own, k)
      else
        call('ZADD', own, math.min(math.max(at, horizon + 1), now + LOOK_MS + 1), k)
        if at <= now or horizon > now then choose(k) end
      end
    end
    end_turn(turns_key, own, user)
  end

  -- More are due than one call looks at: half of them by turns of users, the others as they came.
  local function by_turns(as_they_came)
    local chosen, seen = {}, {}
    local function choose(k)
      if not seen[k] then chosen[#chosen + 1], seen[k] = k, true end
    end
    for _, user in ipairs(call('ZRANGEBYSCORE', turns_key, '-inf', horizon, 'LIMIT', 0, USERS)) do
      local is_done, failure = pcall(take_keys_of, user, choose)
      if not is_done then
        damage().note(user, failure)
        call('ZREM', turns_key, user)
      end
    end
    for _, k in ipairs(as_they_came) do
      if #chosen < KEYS_DUE then choose(k) end
    end
    return chosen
  end

  -- The keys that are due share alike what one call lets in.
  function it.tick(woken)
    count_running()
    look_at_all()
    local keys = call('ZRANGEBYSCORE', held_key, '-inf', now, 'LIMIT', 0, KEYS_DUE)
    if #keys == KEYS_DUE or horizon > now then keys = by_turns(keys) end
    table.sort(keys)
    local most = math.max(1, math.floor(UNLIMITED / #keys))
    for _, k in ipairs(keys) do look(k, most, woken) end
  end

  return it
end
local limited

-- At the end of a script that made room.
local function pass_room_on()
  if not limited then return end
  local woken = {}
  limited.pass_on(woken)
  for user, tasks in pairs(woken) do wake(user, tasks) end
end

-- Also in a queue whose last limit was lifted, while a task still counts for it.
local function limiting()
  limited = limited or new_limits()
  return limited
end
calls[#calls + 1] = function()
  limited = has_limits and not leaves_limits_alone and new_limits() or nil
  if limited then on_held_back, on_reviewed = limited.take_back, limited.came_back end
  return NEXT
end
-- ARGV[1] is the msgpack of Accept: tells: list[Told]
-- Told: key: str, epoch: int, granted: int, returned: int, over: int, most: int, keep: int, waits: int, lease: int,
--   starts: int, left_us: float, asked_us: float, poke: int, changed: int
--   What the home of a key tells a borrower: epoch, granted and returned of its loan. over: that loan is over. most:
--   by which it was granted. keep: -1, or how many it may keep, as others wait. waits: it gets more when there is more.
--   lease: 0, or that of a rate, with which so many starts may be for a second from asked_us on; the rate opens in
--   left_us. poke: its turn at the rate has come, it is to ask again. changed: of its ask.
local args
local tells
local loans
local woken, asks_again

-- What comes late, or twice, tells nothing new.
local function take_places(loan, told)
  local key, epoch, granted, returned, over, most, changed =
    told[1], told[2], told[3], told[4], told[5], told[6], told[14]
  local home = loans.home_of(key)
  if over == 1 then
    if loan.epoch == epoch then loan.epoch, loan.granted, loan.returned, loan.fresh = 0, 0, 0, 0 end
    loans.close(home, epoch)
    return false
  end
  if epoch == 0 or epoch < loan.epoch then return false end
  if epoch > loan.epoch then
    if epoch <= loans.closed(home) then return granted > returned end -- never, and it is to know that
    loan.epoch, loan.granted, loan.returned, loan.fresh, loan.of, loan.changed = epoch, 0, 0, 0, 0, changed
  end
  if granted > loan.granted and changed ~= loan.changed then loan.changed = 0 end -- granted by what it had been
  loan.fresh = loan.fresh + math.max(0, granted - loan.granted)
  if granted > loan.granted then loan.since = now end
  loan.granted, loan.returned = math.max(loan.granted, granted), math.max(loan.returned, returned)
  loan.of = math.max(loan.of, most)
  return false
end

local function take_rate(l, loan, told)
  local lease, starts, left_us, asked_us = told[9], told[10], told[11], told[12]
  if lease <= loan.seen or asked_us + loans.LEASE_US <= now_us or not (l and l.rate_us) then return end
  loan.lease, loan.lease_until, loan.starts = lease, asked_us + loans.LEASE_US, starts
  loan.seen, loan.seen_until = lease, loan.lease_until
  limited.set_tat(l, now_us + left_us)
end

local function accept(told)
  local key, keep, waits, poke = told[1], told[7], told[8], told[13]
  if not loans.is_divided or loans.is_home(key) then return end
  local loan = loans.loan(key)
  local is_refused = take_places(loan, told)
  loan.keep, loan.asked = keep, waits
  limited.forget(key)
  take_rate(limited.limit(key), loan, told)
  loans.save(key, loan)
  limited.forget(key)
  limited.let_in(key, woken)
  limited.forget(key)
  local l, need = limited.limit(key), 0
  loan = loans.loan(key)
  if l and not l.paused and not l.uncounted then need = limited.need(key) end
  local idle = loan.granted - loan.returned - limited.used(key)
  local goes_back = l and l.most and loans.is_outdated(l, loan) and loan.granted - loan.returned > limited.running(key)
  if is_refused or goes_back or poke == 1 or (need > 0 and waits == 0 and loan.lease == 0 and not (l.most and loan.epoch == 0)) then
    asks_again = 1
    return loans.put_off(key, now)
  end
  if need > 0 then
    if loan.since == 0 then
      loan.since = now
      call('HSET', loans.loan_key(key), 'since', now_text)
    end
    return loans.put_off(key, now + loans.retry_ms(loan.since, 4 * loans.RETRY_MS))
  end
  call('HDEL', loans.loan_key(key), 'since')
  if idle > 0 or loan.lease > 0 then
    if keep >= 0 and idle > 0 then asks_again = 1 end
    return loans.put_off(key, keep >= 0 and idle > 0 and now or now + loans.LINGER_MS)
  end
  loans.rest(key, loan)
end

calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  tells = args[1]
  limiting()
  loans = new_loans()
  woken, asks_again = {}, 0
  for _, told in ipairs(tells) do
    local key = told[1]
    local is_done, failure = try_alone(accept, told)
    if not is_done then redis.log(redis.LOG_WARNING, 'fairque: ' .. key .. ': ' .. text_of(failure)) end
  end
  for user, tasks in pairs(woken) do wake(user, tasks) end
  save_state()
  return asks_again
end
local function run(its_keys, its_values)
  KEYS, ARGV = its_keys, its_values
  for nth = 1, #calls do
    local came = calls[nth]()
    if came ~= NEXT then return came end
  end
end
return run(keys_of_call, values_of_call)
end)()

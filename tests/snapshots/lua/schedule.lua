#!lua
-- Write schedules, all of a call or none: new ones, and ones that are as their writer has read them.
-- KEYS[1]  state
-- Returns  'done' (also by an earlier try of the same call) | 'exists' | 'missing' | 'changed' (since it was read) |
--          {'heavy', user, bytes used, limit, bytes asked for, ms}
-- Cost     O(schedules log schedules)
local keys_of_call, values_of_call = KEYS, ARGV
local KEYS, ARGV
local calls, NEXT = {}, {}

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

-- lib/schedules.lua
-- Schedules.
-- schedules       zset  user → ms at which the first of its schedules fires, or of its last turn where more are due
-- schedules:<u>   zset  id → ms at which it fires next
-- schedules-ended zset  id → ms at which one that has ended is forgotten
-- schedule:<id>   hash  user, name, spec, anchor, body, callbacks, priority, delay, revision, state (active | paused | ended), slot
--                       (ms it was planned for), created, runs, skipped, misfired, last_run, last_task, unended (of the
--                       ids of its tasks that may not have ended, what follows its own), recent (what came of its last
--                       slots), and of a declared one: declared,
--                       older, orphaned
-- schedules-broken zset id → ms at which it was set aside, as its hash was gone or could not be read
-- schedule-index  zset  <u>:<id>, all with score 0: the schedules of a user are a range
-- declared        zset  id → when a worker or scheduler last declared it
-- declarers       zset  <definition> <id> → when one last declared just this definition

-- lib/bytes.lua
-- Bytes of users that may have no more than `max_bytes`: bodies, errors, results and chunks of their tasks, values that those
-- share, and bodies of schedules. `bytes` is nil in a queue where nobody has such a limit.
-- A call writes what it counted at its end, by save_state() or save_bytes().
-- bytes:<u>           hash  used: all of it; <bucket>: what expires by itself before the end of these ten seconds, counted
--                           since 1970; gen: when the count began, in us
-- bytes-expiring:<u>  zset  the buckets
-- xcom-bytes:<u>      hash  namespace → bytes of its values
-- While what was there before its user had a limit is counted (lib/weighing.lua), `weighed` has what is in the counts of
-- those whose `gen` is in `weighing` of the state.

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

local function new_bytes()
  local it, limits, own_limits, gens = {}, {}, {}, {}
  local pending, stored = {}, {} -- of users: changes of this call; what the hash says, once what has expired is out of it
  local BUCKET_MS, LOOKS, MOST_LOOKS = 10000, 500, 5000
  local LEAST_RETRY_MS, LONGEST_RETRY_MS = 1000, 60000
  local weighed_key = prefix .. 'weighed'
  local of_all = call('HMGET', state_key, 'byte_gen', 'weighing')
  local gen_of_all, weighing = of_all[1] or '0', of_all[2]
  local function counts_of(user) return prefix .. 'bytes:' .. user end
  local function buckets_of(user) return prefix .. 'bytes-expiring:' .. user end
  local function spaces_of(user) return prefix .. 'xcom-bytes:' .. user end

  local function stated(whose)
    local packed = call('GET', prefix .. 'policy:' .. whose)
    return packed and cmsgpack.unpack(packed).max_bytes
  end
  local default = stated('*')

  -- False: none.
  function it.limit(user)
    if limits[user] == nil then
      own_limits[user] = stated(user)
      limits[user] = own_limits[user] or default or false
    end
    return limits[user]
  end

  function it.forget(user)
    gens[user], pending[user], stored[user] = nil, nil, nil
    call('UNLINK', counts_of(user), buckets_of(user), spaces_of(user))
  end

  local function is_damaged(user)
    return type(redis.pcall('HLEN', counts_of(user))) ~= 'number' or type(redis.pcall('ZCARD', buckets_of(user))) ~= 'number'
      or type(redis.pcall('HLEN', spaces_of(user))) ~= 'number'
  end

  -- A count from before everybody had a limit knows nothing of what came between; one that is damaged begins anew.
  local function gen_of(user)
    if gens[user] then return gens[user] end
    if is_damaged(user) then it.forget(user) end
    local gen = call('HGET', counts_of(user), 'gen')
    if gen and not own_limits[user] and tonumber(gen) < tonumber(gen_of_all) then
      it.forget(user)
      gen = nil
    end
    if not gen then
      gen = gen_of_all
      call('HSET', counts_of(user), 'gen', gen)
      call('ZADD', users_key, 'NX', now, user)
    end
    gens[user] = gen
    return gen
  end

  -- Whether something of it may be there that is not in its count.
  function it.is_counting(user)
    return it.limit(user) and weighing and string.find(' ' .. weighing .. ' ', ' ' .. gen_of(user) .. ' ', 1, true) and true or
      false
  end

  local function mark_of(user, part) return gen_of(user) .. ':' .. user .. ':' .. part end

  local function book(user, by, expiry)
    local changes = pending[user]
    if not changes then
      changes = { used = 0, buckets = {} }
      pending[user] = changes
    end
    changes.used = changes.used + by
    if not expiry then return end
    local bucket = string.format('%d', math.ceil(expiry / BUCKET_MS))
    changes.buckets[bucket] = (changes.buckets[bucket] or 0) + by
  end

  local function write_bucket(user, bucket, by)
    local left = call('HINCRBY', counts_of(user), bucket, by)
    if left <= 0 then
      call('HDEL', counts_of(user), bucket)
      call('ZREM', buckets_of(user), bucket)
    elseif left == by then
      call('ZADD', buckets_of(user), bucket, bucket)
    end
  end

  local function write(user, changes)
    for bucket, by in pairs(changes.buckets) do
      if by ~= 0 then write_bucket(user, bucket, by) end
    end
    stored[user] = nil
    if call('HINCRBY', counts_of(user), 'used', changes.used) <= 0 and not weighing then it.forget(user) end
  end

  function it.save()
    local changed = pending
    pending = {}
    for user, changes in pairs(changed) do write(user, changes) end
  end

  -- Whether it changes the count: what has not been counted yet cannot leave it.
  local function is_in_count(user, part, by)
    gen_of(user)
    if not it.is_counting(user) then return true end
    if by > 0 then return call('SADD', weighed_key, mark_of(user, part)) >= 0 end
    return call('SREM', weighed_key, mark_of(user, part)) == 1
  end

  -- One part came, or goes. `expiry`: in ms, nil for never.
  function it.change(user, part, by, expiry)
    if by ~= 0 and it.limit(user) and is_in_count(user, part, by) then book(user, by, expiry) end
  end

  -- One that was there before its user had a limit.
  function it.discover(user, part, size, expiry)
    if call('SADD', weighed_key, mark_of(user, part)) == 1 then book(user, size, expiry) end
  end

  local function size_of(key)
    local size = redis.pcall('STRLEN', key)
    return type(size) == 'number' and size or 0 -- 0: of another kind, by a foreign hand
  end

  local function size_of_list(key)
    local size, found = 0, redis.pcall('LRANGE', key, 0, -1)
    for _, each in ipairs(found) do size = size + #each end
    return size
  end

  -- The last batch tells: append.lua.
  local function size_of_chunks(key)
    local last = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    return last and (tonumber(last[2][4]) or 0) + (tonumber(last[2][6]) or 0) or 0
  end

  function it.expiry_of(key)
    local at = call('PEXPIRETIME', key)
    return at >= 0 and at or nil
  end

  -- What the task has now beside its chunks, by part: name, key, size.
  local function parts_that_settle(user, id)
    local body, errors, result = body_key(user, id), errors_key(user, id), result_key(user, id)
    return {
      { 'body:' .. id, body, size_of(body) },
      { 'errors:' .. id, errors, size_of_list(errors) },
      { 'result:' .. id, result, size_of(result) },
    }
  end

  local function chunks_of(user, id)
    local key = chunks_key(user, id)
    return { { 'chunks:' .. id, key, size_of_chunks(key) } }
  end

  function it.parts_of(user, id)
    local parts = parts_that_settle(user, id)
    parts[4] = chunks_of(user, id)[1]
    return parts
  end

  local function change_all(user, id, sign, parts_of)
    if not it.limit(user) then return end
    for _, part in ipairs(parts_of(user, id)) do
      if part[3] > 0 then it.change(user, part[1], sign * part[3], it.expiry_of(part[2])) end
    end
  end

  -- What is there of a task leaves the count, before it changes. It comes back as it is afterwards.
  function it.lift(user, id) change_all(user, id, -1, it.parts_of) end
  function it.lay(user, id) change_all(user, id, 1, it.parts_of) end
  function it.lift_chunks(user, id) change_all(user, id, -1, chunks_of) end
  function it.lay_chunks(user, id) change_all(user, id, 1, chunks_of) end

  -- The same for a task that runs, which has no result, and nothing that expires; returns how much. Its chunks stay.
  function it.lift_running(user, id)
    local body, errors = size_of(body_key(user, id)), size_of_list(errors_key(user, id))
    it.change(user, 'body:' .. id, -body)
    it.change(user, 'errors:' .. id, -errors)
    return body + errors
  end

  function it.lay_settled(user, id) change_all(user, id, 1, parts_that_settle) end

  -- The same for one of which nothing is left but its result, and its chunks.
  function it.lay_result(user, id, size) it.change(user, 'result:' .. id, size, it.expiry_of(result_key(user, id))) end

  -- What is kept for the end of the task came, or goes (lib/ends.lua). It is no part of what is lifted.
  function it.change_ends(user, id, sign)
    local key = ends_key(user, id)
    it.change(user, 'ends:' .. id, sign * size_of(key), it.expiry_of(key))
  end

  -- The same of the callbacks of a batch.
  function it.change_batch(user, batch, sign)
    local key = prefix .. 'batch:' .. user .. ':' .. batch
    local size = call('HSTRLEN', key, 'on_complete') + call('HSTRLEN', key, 'on_success')
    it.change(user, 'batch:' .. batch, sign * size, it.expiry_of(key))
  end

  function it.size_of_schedule(id)
    local key = prefix .. 'schedule:' .. id
    return call('HSTRLEN', key, 'body') + call('HSTRLEN', key, 'callbacks')
  end

  -- The same of the messages of a schedule.
  function it.change_schedule(user, id, sign) it.change(user, 'schedule:' .. id, sign * it.size_of_schedule(id)) end

  -- A value of a namespace came, or goes.
  local function book_value(user, namespace, by)
    local key = spaces_of(user)
    if call('HINCRBY', key, namespace, by) <= 0 then call('HDEL', key, namespace) end
    book(user, by)
  end
  local function value_part(namespace, key) return 'xcom:' .. namespace .. ':' .. key end

  function it.change_value(user, namespace, key, by)
    if by == 0 or not it.limit(user) then return end
    if is_in_count(user, value_part(namespace, key), by) then book_value(user, namespace, by) end
  end

  function it.discover_value(user, namespace, key, size)
    if call('SADD', weighed_key, mark_of(user, value_part(namespace, key))) == 1 then book_value(user, namespace, size) end
  end

  -- All values of some namespaces are gone.
  function it.forget_spaces(user, namespaces)
    if not namespaces[1] or not it.limit(user) then return end
    local gone = 0
    for _, size in ipairs(call('HMGET', spaces_of(user), unpack(namespaces))) do gone = gone + (size or 0) end
    if gone == 0 then return end
    call('HDEL', spaces_of(user), unpack(namespaces))
    call('HINCRBY', counts_of(user), 'used', -gone)
    stored[user] = nil
  end

  function it.forget_space(user, namespace) it.forget_spaces(user, { namespace }) end

  -- A namespace goes with its last value.
  local function drop_expired_spaces(user)
    local spaces = prefix .. 'xcom-spaces:' .. user
    if call('EXISTS', spaces) == 0 then return it.forget_spaces(user, call('HRANDFIELD', spaces_of(user), LOOKS)) end
    it.forget_spaces(user, call('ZRANGEBYSCORE', spaces, '-inf', now, 'LIMIT', 0, LOOKS))
  end

  local function drop_expired(user)
    local key = counts_of(user)
    for _ = 1, MOST_LOOKS / LOOKS do
      local buckets = call('ZRANGEBYSCORE', buckets_of(user), '-inf', math.floor(now / BUCKET_MS), 'LIMIT', 0, LOOKS)
      if #buckets == 0 then return end
      local gone = 0
      for _, size in ipairs(call('HMGET', key, unpack(buckets))) do gone = gone + (size or 0) end
      call('HDEL', key, unpack(buckets))
      call('ZREM', buckets_of(user), unpack(buckets))
      call('HINCRBY', key, 'used', -gone) -- also by a call that writes nothing else
    end
  end

  function it.used(user)
    if not stored[user] then
      gen_of(user)
      drop_expired(user)
      if call('EXISTS', spaces_of(user)) == 1 then drop_expired_spaces(user) end
      stored[user] = tonumber(call('HGET', counts_of(user), 'used') or 0)
    end
    return stored[user] + (pending[user] and pending[user].used or 0)
  end

  function it.has_room(user, asked)
    local limit = it.limit(user)
    return not limit or asked <= 0 or it.used(user) + asked <= limit
  end

  -- When something expires next.
  local function retry_after(user)
    local bucket = call('ZRANGE', buckets_of(user), 0, 0)[1]
    local wait = bucket and bucket * BUCKET_MS - now or LONGEST_RETRY_MS
    return math.max(LEAST_RETRY_MS, math.min(LONGEST_RETRY_MS, wait))
  end

  -- Nil where so much more fits, else the reply that says why not.
  function it.refuse(user, asked)
    if it.has_room(user, asked) then return nil end
    return { 'heavy', user, it.used(user), it.limit(user), asked, retry_after(user) }
  end

  -- Nothing may be left of a user that nobody has heard of for long.
  function it.prune(user)
    if not it.limit(user) or (it.used(user) <= 0 and not weighing) then it.forget(user) end
  end

  local before = save_bytes
  save_bytes = function()
    if before then before() end
    it.save()
  end
  return it
end
local bytes
calls[#calls + 1] = function()
  bytes = has_byte_limits and new_bytes() or nil
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
local broken_key
local declared_key
local end_schedule
local ended_key
local fire_at
local fire_no_more
local forget_schedule
local index_key
local read_schedule
local schedule_key
local schedules_of
local weigh_schedule
do

local schedules_key
function schedule_key(id) return prefix .. 'schedule:' .. id end
function schedules_of(user) return place_key('schedules', user) end

-- Nothing where the key is no hash: one schedule that is damaged must not keep the others from firing.
function read_schedule(id, ...)
  local known = redis.pcall('HMGET', schedule_key(id), ...)
  return known.err and {} or known
end

function fire_at(user, id, ms)
  call('ZADD', schedules_of(user), ms, id)
  end_turn(schedules_key, schedules_of(user), user)
end

function fire_no_more(user, id)
  if call('ZREM', schedules_of(user), id) == 1 then end_turn(schedules_key, schedules_of(user), user) end
end

-- Its messages are in the count of the bytes of its user.
function weigh_schedule(user, id, sign)
  if bytes then bytes.change_schedule(user, id, sign) end
end

-- It fires no more, and is forgotten `keep` ms from now.
function end_schedule(user, id, keep)
  call('HSET', schedule_key(id), 'state', 'ended')
  call('HDEL', schedule_key(id), 'slot')
  fire_no_more(user, id)
  call('ZADD', ended_key, string.format('%d', now + keep), id)
end

function forget_schedule(id)
  local user = read_schedule(id, 'user')[1]
  if user then
    fire_no_more(user, id)
    weigh_schedule(user, id, -1)
    call('ZREM', index_key, user .. ':' .. id)
  end
  call('ZREM', ended_key, id)
  call('ZREM', declared_key, id)
  call('ZREM', broken_key, id)
  return call('DEL', schedule_key(id))
end
calls[#calls + 1] = function()
  schedules_key, index_key, declared_key = prefix .. 'schedules', prefix .. 'schedule-index', prefix .. 'declared'
  ended_key, broken_key = prefix .. 'schedules-ended', prefix .. 'schedules-broken'
  return NEXT
end
end

-- lib/schedule_keepers.lua
-- Of all who fire schedules, one looks at each moment at which one is due, the keeper, and one a little later, the deputy,
-- should the keeper be gone by then. The others need not look: who gives a sign of life learns that a part is free.
-- schedule-keepers  string  <keeper> <ms of its last look> <ms of its next> <deputy> <ms of its next>; '-' where there is none
local LONGEST_MS
local tell_keepers
do

local keepers_key
local LATE_MS, BUSY_MS = 50, 1000 -- what a keeper may be late by, and how long it may take to fire what it found
local DEPUTY_PAUSE_MS
DEPUTY_PAUSE_MS, LONGEST_MS = 900, 30000

local function read_keepers()
  local text = redis.pcall('GET', keepers_key)
  local keeper, looked, at, deputy, deputy_at =
    string.match(type(text) == 'string' and text or '', '^(%S+) (%d+) (%d+) (%S+) (%d+)$')
  return { keeper = keeper or '-', looked = tonumber(looked or 0), at = tonumber(at or 0), deputy = deputy or '-',
    deputy_at = tonumber(deputy_at or 0) }
end

local function write_keepers(k)
  local text = string.format('%s %d %d %s %d', k.keeper, k.looked, k.at, k.deputy, k.deputy_at)
  call('SET', keepers_key, text, 'PX', 2 * LONGEST_MS)
end

local function is_keeper_gone(k) return k.keeper == '-' or k.at + LATE_MS < now end

local function is_deputy_gone(k) return k.deputy == '-' or k.deputy_at + BUSY_MS < now end

-- Whether one that has no part is to take one.
local function has_part_for(scheduler)
  local k = read_keepers()
  return k.keeper ~= scheduler and k.deputy ~= scheduler and (is_keeper_gone(k) or is_deputy_gone(k))
end

-- `due_ms`: of the first schedule. One that is late was not looked at, or whoever did was stopped while it fired.
local function is_keeper_needed(k, due_ms)
  if is_keeper_gone(k) then return true end
  return due_ms and due_ms + LATE_MS <= now and (k.looked < due_ms or k.looked + BUSY_MS < now)
end

-- Whether the scheduler is the one that fires, and when it looks again, -1: when it is told to; `next_ms` is of the first
-- that is not due.
local function take_part(scheduler, due_ms, next_ms)
  local k, latest = read_keepers(), now + LONGEST_MS
  if k.keeper == scheduler or is_keeper_needed(k, due_ms) then
    k.keeper, k.looked, k.at = scheduler, now, math.min(next_ms or latest, latest)
    if k.deputy == scheduler then k.deputy, k.deputy_at = '-', 0 end
    write_keepers(k)
    return true, k.at
  end
  if k.deputy == scheduler or is_deputy_gone(k) then
    local wanted = math.max((next_ms or latest) + LATE_MS, now + DEPUTY_PAUSE_MS)
    k.deputy, k.deputy_at = scheduler, math.min(wanted, latest)
    write_keepers(k)
    return false, k.deputy_at
  end
  return false, -1
end

-- '' is for all of them.
local function tell_schedulers(names) redis.pcall('SPUBLISH', prefix .. 'schedules', names) end

-- Of a moment that may be sooner than the one that the keeper knows; everybody hears of it where there is no keeper.
function tell_keepers(next_ms)
  local k = read_keepers()
  if is_keeper_gone(k) then
    tell_schedulers('')
  elseif next_ms < k.at then
    tell_schedulers(k.keeper .. ' ' .. k.deputy)
  end
end

-- The deputy looks at once where the keeper leaves.
local function leave_part(scheduler)
  local k = read_keepers()
  if k.deputy == scheduler then k.deputy, k.deputy_at = '-', 0 end
  if k.keeper == scheduler then
    k.keeper, k.looked, k.at = '-', 0, 0
    tell_schedulers(k.deputy == '-' and '' or k.deputy)
  end
  if k.keeper == '-' and k.deputy == '-' then call('DEL', keepers_key) else write_keepers(k) end
end
calls[#calls + 1] = function()
  keepers_key = prefix .. 'schedule-keepers'
  return NEXT
end
end
-- ARGV[1] is the msgpack of Schedule: revision: str, keep_ms: int, schedules: list[WrittenSchedule]
--   revision: of all, from now on. keep_ms: how long an ended schedule is kept.
-- WrittenSchedule: id: str, user: str, read: str, next_ms: int | str, fields: list[Field]
--   read: the revision that was read, '' for a new schedule.
--   next_ms: of the next firing; 'keep': as it is, '': none.
local args
local revision, keep_ms, schedules
local more, orders, soonest

local function problem_of(known, read)
  local is_there = known[1] and known[2]
  if read == '' then return is_there and 'exists' end
  if not is_there then return 'missing' end
  return known[1] ~= read and 'changed'
end

local function weigh_change(id, user, known, fields)
  for _, field in ipairs(fields) do
    local name, value = field[1], ARGV[field[2]] or ''
    if name == 'body' or name == 'callbacks' then
      local before = known[2] == user and call('HSTRLEN', schedule_key(id), name) or 0
      more[user] = (more[user] or 0) + #value - before
    end
  end
end

-- Where it is listed follows its state.
local function list(id, user, next_ms)
  if call('HGET', schedule_key(id), 'state') == 'ended' then
    end_schedule(user, id, keep_ms)
  else
    call('ZREM', ended_key, id)
    if next_ms == '' then
      fire_no_more(user, id)
    elseif next_ms ~= 'keep' then
      fire_at(user, id, next_ms)
      soonest = math.min(soonest, next_ms)
    end
  end
  call('ZADD', index_key, 0, user .. ':' .. id)
end

-- To another user. Returns when it fires next.
local function move(id, owner, next_ms)
  if next_ms == 'keep' then next_ms = call('ZSCORE', schedules_of(owner), id) or '' end
  fire_no_more(owner, id)
  call('ZREM', index_key, owner .. ':' .. id)
  return next_ms
end

local function write(order)
  local id, user, read, next_ms, fields = order[1], order[2], order[3], order[4], order[5]
  local key, owner = schedule_key(id), order.owner
  if read == '' then forget_schedule(id) end
  if owner then weigh_schedule(owner, id, -1) end
  if owner and owner ~= user then next_ms = move(id, owner, next_ms) end
  call('HSET', key, 'revision', revision, 'user', user)
  if read == '' then call('HSET', key, 'created', now_text) end
  for _, field in ipairs(fields) do
    local name, value = field[1], ARGV[field[2]] or ''
    if value == '' then call('HDEL', key, name) else call('HSET', key, name, value) end
  end
  weigh_schedule(user, id, 1)
  list(id, user, next_ms)
end

calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  revision, keep_ms, schedules = args[1], args[2], args[3]
  more, orders, soonest = {}, {}, math.huge
  for _, order in ipairs(schedules) do
    local id, user, read, fields = order[1], order[2], order[3], order[5]
    local known = read_schedule(id, 'revision', 'user')
    refuse_absent(user)
    if known[2] and known[2] ~= user then refuse_absent(known[2]) end
    if known[1] ~= revision then
      local problem = problem_of(known, read)
      if problem then return problem end
      weigh_change(id, user, known, fields)
      order.owner = read ~= '' and known[2] or nil
      orders[#orders + 1] = order
    end
  end
  for user, size in pairs(bytes and more or {}) do
    local too_heavy = bytes.refuse(user, size)
    if too_heavy then return too_heavy end
  end
  for _, order in ipairs(orders) do write(order) end
  if save_bytes then save_bytes() end
  if soonest < math.huge then tell_keepers(soonest) end
  return 'done'
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

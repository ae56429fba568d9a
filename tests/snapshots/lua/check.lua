#!lua flags=no-writes
-- Say what is wrong with parts of a queue, each seen at one moment.
-- KEYS[1]  state
-- Returns  per item, a list of {kind, key without its prefix, detail, ''}
-- Cost     O(items log n)
local keys_of_call, values_of_call = KEYS, ARGV
local KEYS, ARGV
local calls, NEXT = {}, {}

-- lib/checkup.lua
-- All checks of a queue, by name. `request` is a `Check`; returns the reply of check.lua.

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

-- lib/doctor.lua
-- The frame of a check: what is wrong with each item that a call names. An item is a list: which check, the user and the
-- id that it is about or '', then what the check needs. Each is looked at alone, so that an error in one, such as a key of
-- a wrong type, is told of that one. In a repair what is wrong is mended at once: nothing comes between look and mend.

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

local function new_doctor(repairs)
  local it, checks, found = { checks = {} }, nil, nil
  checks = it.checks

  -- `key` is without its prefix. `mend` puts it right and returns what it did, or nil when it could do nothing.
  function it.wrong(kind, key, detail, mend)
    local at = #found + 1
    found[at] = { kind, key, detail, '' }
    local how = repairs and mend and mend()
    if how then found[at][4] = how end
  end


  local function look(item)
    found = {}
    -- The lists of one that stands still are made anew when it goes on, and what is left of one that has moved is on its way out.
    if item[2] ~= '' and is_absent(item[2]) then return found end
    local ok, problem = pcall(checks[item[1]], unpack(item, 2))
    if save_lines then save_lines() end -- what is looked at next reads them
    if not ok then found[#found + 1] = { 'unreadable', item[1] .. ' ' .. item[2], text_of(problem), '' } end
    return found
  end

  function it.look_at(items)
    local answers = {}
    for at, item in ipairs(items) do answers[at] = look(item) end
    return answers
  end

  return it
end

-- lib/check_keys.lua
-- A key by itself: its type, and whether it expires. `name` is without its prefix; `ttl_ms`: what it should have had.

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
local add_key_checks
local set_aside
do

local DAMAGED_TTL = 604800000 -- what is set aside is kept for a week

function set_aside(name)
  local aside = prefix .. 'damaged:' .. name
  call('RENAME', prefix .. name, aside)
  call('PEXPIRE', aside, DAMAGED_TTL)
  return 'set aside as damaged:' .. name
end

-- A time to live of 0 days is that of dead letters.
function add_key_checks(doctor, dead_letter_ttl_ms)
  local wrong = doctor.wrong

  -- The message of a task is replaced by one that says so: its task fails with that reason when its turn comes.
  local function mend_type(user, name)
    local told = set_aside(name)
    if bytes and user ~= '' and not is_weighing and bytes.limit(user) then bytes.forget(user) end -- and counted anew
    if string.sub(name, 1, 5) == 'body:' then call('SET', prefix .. name, '\0not a string') end
    return told
  end

  function doctor.checks.key(user, _, name, kind, expires, ttl_ms)
    local key = prefix .. name
    local is = call('TYPE', key).ok
    if is == 'none' then return end
    if is ~= kind and kind ~= 'any' then
      return wrong('wrong-type', name, 'is a ' .. is .. ', not a ' .. kind, function() return mend_type(user, name) end)
    end
    local left = call('PTTL', key)
    if expires == 'yes' and left == -1 then
      wrong('no-expiry', name, 'stays for ever', function()
        local ms = ttl_ms > 0 and ttl_ms or dead_letter_ttl_ms
        call('PEXPIRE', key, ms)
        return 'expires in ' .. string.format('%d', ms / 1000) .. ' s'
      end)
    elseif expires == 'no' and left >= 0 then
      wrong('expires', name, 'vanishes in ' .. string.format('%d', left) .. ' ms', function()
        call('PERSIST', key)
        return 'stays'
      end)
    end
  end
end
end

-- lib/check_tasks.lua
-- Tasks: each is in exactly one place, and what its keys say of it is where it is.

-- lib/task.lua
-- What goes when a task goes.

-- All that is kept of a task itself, apart from its result and from what waits for what.
local function keys_of_task(user, id) return task_key(user, id), body_key(user, id), errors_key(user, id) end

-- It lives, so it kills nobody (lib/taking_over.lua).
local function clear_its_name(key) call('HDEL', key, 'lost', 'received', 'tried', 'deaths', 'alone') end

-- Nothing is left of a task that waits nowhere but its links.
local function erase_task(user, id)
  if bytes then
    bytes.lift(user, id)
    bytes.change_ends(user, id, -1)
  end
  call('DEL', result_key(user, id), needs_key(user, id), ends_key(user, id), keys_of_task(user, id))
  call('UNLINK', chunks_key(user, id), children_key(user, id)) -- they may be large
end

-- The task has ended: what it yielded, if it did, goes with its result.
local function expire_chunks(user, id, ttl)
  local key = chunks_key(user, id)
  if bytes then bytes.lift_chunks(user, id) end
  call('PEXPIRE', key, ttl)
  if bytes then bytes.lay_chunks(user, id) end
end

-- lib/letter.lua

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

-- lib/dead_kinds.lua
-- Dead letters by the kind of their error, 'error ValueError': the kind of the failure and the name of the class. Of a user, and of
-- the queue (`*`), so many kinds have lists of their own; letters of further ones are in none. A kind that has one keeps it
-- until its letters are gone, so that many kinds of one user push out none of another.
-- dead-kinds:<u>, dead-kinds:*     zset  kind → ms of its latest letter
-- dead-of:<u>:<k>                  zset  id → ms
-- dead-of:*:<k>                    zset  <u>:<id> → ms
-- These lists are beside the letters: where one is damaged, letters come and go without it, and `check` mends it.
local kinds_key
local letters_key
local letters_name
local list_by_kind
local take_from
local unlist_by_kind
do
local MOST_KINDS_OF_USER, MOST_KINDS_OF_ALL = 20, 500
local LONGEST_KIND = 200
local KINDS_FORGOTTEN = 100
local softly

function kinds_key(whose) return prefix .. 'dead-kinds:' .. whose end
function letters_name(whose, kind) return 'dead-of:' .. whose .. ':' .. kind end
function letters_key(whose, kind) return prefix .. letters_name(whose, kind) end

-- Of an error, as models.Attempt has it; '' where it cannot be read. Cut between two characters.
local function kind_in(error_record)
  local is_read, _, _, _, failure, name = pcall(cmsgpack.unpack_limit, error_record, 4, 1)
  if not is_read or type(failure) ~= 'string' or type(name) ~= 'string' then return '' end
  local kind, last = failure .. ' ' .. name, LONGEST_KIND
  if #kind <= last then return kind end
  while last > 0 and string.byte(kind, last + 1) >= 128 and string.byte(kind, last + 1) < 192 do last = last - 1 end
  return string.sub(kind, 1, last)
end

-- Whether it has a list, or there is room for one.
local function has_list(whose, kind, most, ttl)
  local key = kinds_key(whose)
  if type(softly('ZSCORE', key, kind)) == 'string' then return true end
  if (tonumber(softly('ZCARD', key)) or most) < most then return true end
  softly('ZREMRANGEBYSCORE', key, '-inf', now - ttl)
  return (tonumber(softly('ZCARD', key)) or most) < most
end

local function put_under(whose, kind, member, at, most, ttl)
  if not has_list(whose, kind, most, ttl) then return false end
  local kinds, letters = kinds_key(whose), letters_key(whose, kind)
  softly('ZADD', kinds, 'GT', at, kind)
  softly('PEXPIRE', kinds, ttl)
  softly('ZADD', letters, at, member)
  softly('PEXPIRE', letters, ttl)
  local old = tonumber(softly('ZCOUNT', letters, '-inf', now - ttl)) or 0
  if old > 0 then softly('ZREMRANGEBYRANK', letters, 0, math.min(old, KINDS_FORGOTTEN) - 1) end
  return true
end

-- A task became a dead letter. Returns what its record keeps: the kind, or '' where that has no list. `dead_apart` of it says
-- that it is not among those of the queue.
function list_by_kind(user, id, error_record, at, ttl)
  local kind = kind_in(error_record)
  if kind == '' or not put_under(user, kind, id, at, MOST_KINDS_OF_USER, ttl) then return '' end
  if not put_under('*', kind, user .. ':' .. id, at, MOST_KINDS_OF_ALL, ttl) then softly('HSET', task_key(user, id), 'dead_apart', 1) end
  return kind
end

function take_from(whose, kind, member)
  local letters = letters_key(whose, kind)
  if softly('ZREM', letters, member) == 1 and softly('EXISTS', letters) == 0 then softly('ZREM', kinds_key(whose), kind) end
end

-- It is none any more. Where its record is gone, all kinds of its user are looked at.
function unlist_by_kind(user, id)
  local kind = softly('HGET', task_key(user, id), 'dead_kind')
  local kinds = type(kind) == 'string' and { kind } or softly('ZRANGE', kinds_key(user), 0, -1)
  for _, each in ipairs(kinds) do
    if each ~= '' then
      take_from(user, each, id)
      take_from('*', each, user .. ':' .. id)
    end
  end
end
calls[#calls + 1] = function()
  softly = redis.pcall
  return NEXT
end
end

-- A task is no dead letter any more. All is read before anything is written.
local function unlist_dead(user, id)
  local all, own = prefix .. 'lapsing', place_key('lapsing', user)
  local is_linked = call('ZSCORE', own, id)
  if call('ZREM', place_key('dead', user), id) == 1 then unlist_by_kind(user, id) end
  call('ZREM', prefix .. 'dead', user .. ':' .. id)
  if is_linked then take_moment(all, own, user, id) end
end

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

-- lib/place.lua
-- Where a task waits: in a lane, or among the scheduled ones of its user.
local arrival_of
local due_at
local place
local schedule
local score_of
do

function due_at(when)
  if when == '' then return 0 end
  if string.byte(when) == 99 then return now + tonumber(string.match(when, '%d+$')) end -- 'collect …'
  local delay = string.match(when, '%+(%d+)$')
  return delay and now + tonumber(delay) or tonumber(when)
end

function score_of(priority, step_us, came)
  if priority == 6 then return 'critical', came or next_arrival() end
  return 'normal', (came or next_arrival()) - (priority - 1) * step_us
end

-- The arrival that a score was made of.
function arrival_of(lane, score, priority, step_us)
  return lane == 'critical' and tonumber(score) or score + (priority - 1) * step_us
end

-- True: the user may be served now.
function place(user, id, lane, score)
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
function schedule(user, id, at)
  local waiting = place_key('scheduled', user)
  local score = place_in_ms(waiting, at)
  call('ZADD', due_key, 'LT', at, user)
  call('ZADD', users_key, now, user)
  call('ZADD', waiting, score, id)
  note_moment(at, user)
  count('scheduled', 1)
end
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

-- lib/canceled.lua
-- Outcomes that others wait for, passed on at the end of the script (lib/depend.lua).

-- lib/metrics.lua
-- Measures users; what a script measured is written by its save_state().
local save
local tally
local tally_service
do

-- Of each user: finished, failed, canceled, retried, cost, busy microseconds, services, then buckets of waits and their counts.
local TALLIED = { finished = 1, failed = 2, canceled = 3, retried = 4 }
local TALLIED_WAITS = 8
local tallies
local HOUR = 3600000
local HEADS = { [158] = 1, [220] = 3 } -- bytes before the values of a msgpack array: of 14, and of more than 15

local function tallies_of(user)
  local of_user = tallies[user]
  if not of_user then
    of_user = { 0, 0, 0, 0, 0, 0, 0, nil, nil } -- room for one wait
    tallies[user] = of_user
  end
  return of_user
end

-- A task of the user ended, or is tried again.
function tally(user, how)
  local of_user, at = tallies_of(user), TALLIED[how]
  of_user[at] = of_user[at] + 1
end

local function add_wait(pairs_of, first, bucket, more)
  local at, found = first, pairs_of[first]
  while found and found ~= bucket do
    at = at + 2
    found = pairs_of[at]
  end
  if found then pairs_of[at + 1] = pairs_of[at + 1] + more else pairs_of[at], pairs_of[at + 1] = bucket, more end
end

-- One service: how long it waited (nil: known already) and ran, in ms, and what it cost.
function tally_service(user, wait, run, cost)
  local of_user = tallies_of(user)
  of_user[5], of_user[6], of_user[7] = of_user[5] + cost, of_user[6] + math.floor(run * 1000 + 0.5), of_user[7] + 1
  if not wait then return end
  local _, power = math.frexp(wait)
  add_wait(of_user, TALLIED_WAITS, power < 0 and 0 or power < WAIT_BUCKETS and power or WAIT_BUCKETS - 1, 1)
end

local usage_ttl
local function bill_ttl()
  if not usage_ttl then
    local said = redis.pcall('HGET', prefix .. 'settings', 'usage_ttl_ms')
    usage_ttl = type(said) == 'string' and tonumber(said) or 3456000000
  end
  return usage_ttl
end

-- An hour that is over goes to the day's hash, from which bills are written. It lies here or there until nobody bills it.
local function close_hour(user, at, services, cost, busy)
  if services == 0 and cost == 0 and busy == 0 then return end
  local hour = math.floor(at / HOUR)
  local key = prefix .. 'usage:' .. user .. ':' .. string.format('%d', math.floor(hour / 24))
  local field, before = string.format('%d', hour % 24), { 0, 0, 0 }
  local kept = call('HGET', key, field) -- the clock of the server was set back over the end of an hour
  if kept then before = cmsgpack.unpack(kept) end
  call('HSET', key, field, cmsgpack.pack({ services + before[1], cost + before[2], busy + before[3] }))
  call('PEXPIRE', key, bill_ttl())
end

-- What fades needs no more digits than fit half the room.
local function short(x)
  local high = x * 536870913
  return high - (high - x)
end

-- What is kept comes value by value: a table that grows while it is read takes three times as long.
function save(user, key, by, is_new, _, finished, failed, canceled, retried, cost, busy, lately_cost, lately_busy,
    lately_services, written, since, of_hour_services, of_hour_cost, of_hour_busy, ...)
  local in_hour = now % HOUR
  if written < now - in_hour or written >= now - in_hour + HOUR then
    close_hour(user, written, of_hour_services, of_hour_cost, of_hour_busy)
    of_hour_services, of_hour_cost, of_hour_busy, is_new = 0, 0, 0, true
  end
  local passed = written < now and now - written or 0 -- the clock of the server may have been set back
  local fade, more_cost, more_busy, services = math.exp(-passed / RECENT_MS), by[5], by[6], by[7]
  local m = {
    finished + by[1], failed + by[2], canceled + by[3], retried + by[4], cost + more_cost, busy + more_busy,
    short(lately_cost * fade + more_cost), short(lately_busy * fade + more_busy / 1e6), short(lately_services * fade + services),
    now, since + passed, of_hour_services + services, of_hour_cost + more_cost, of_hour_busy + more_busy, ...,
  }
  for at = TALLIED_WAITS, #by, 2 do add_wait(m, WAITS, by[at], by[at + 1]) end
  if is_new then -- once an hour the key is given more time
    call('SET', key, cmsgpack.pack(m), 'PX', bill_ttl())
  else
    call('SET', key, cmsgpack.pack(m), 'KEEPTTL')
  end
end

local function add_to(user, key, by, blob)
  if not blob then return save(user, key, by, true, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, now, 0, 0, 0, 0) end
  local head = HEADS[string.byte(blob)] or error('no metrics')
  return save(user, key, by, false, cmsgpack.unpack_limit(blob, WAITS + 2 * WAIT_BUCKETS, head))
end

local function sum_of(tallied)
  local finished, failed, canceled, retried, cost, busy, services = 0, 0, 0, 0, 0, 0, 0
  local sum = { 0, 0, 0, 0, 0, 0, 0 }
  for _, by in pairs(tallied) do
    finished, failed, canceled, retried = finished + by[1], failed + by[2], canceled + by[3], retried + by[4]
    cost, busy, services = cost + by[5], busy + by[6], services + by[7]
    for at = TALLIED_WAITS, #by, 2 do add_wait(sum, TALLIED_WAITS, by[at], by[at + 1]) end
  end
  sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7] = finished, failed, canceled, retried, cost, busy, services
  return sum
end

function save_tallies()
  local first, whole = next(tallies)
  if not first then return end
  if next(tallies, first) then whole = sum_of(tallies) end
  for how, at in pairs(TALLIED) do
    if whole[at] > 0 then count(how, whole[at]) end
  end
  tallies['*'] = whole
  local users, keys = {}, {}
  for user in pairs(tallies) do
    users[#users + 1], keys[#keys + 1] = user, prefix .. 'metrics:' .. user
  end
  local blobs = call('MGET', unpack(keys)) -- of a key of another type nothing
  for at, user in ipairs(users) do
    pcall(add_to, user, keys[at], tallies[user], blobs[at]) -- a key that is broken costs its own user its numbers
  end
end
calls[#calls + 1] = function()
  tallies = {}
  usage_ttl = nil
  return NEXT
end
end

-- lib/pointers.lua
-- Under which key a task is alone.
-- unique:<u>:<hash>  string  the task that has the key. Of one that lives, it lasts until that begins or ends; with a time to
--                            live, as long as that
-- `unique` of a task is '<kind> <hash> <ms>', kind and ms as `Rules` has them: it has its key as long as that is there.
local pointers
do

pointers = {}
local OVER_AT_THE_BEGIN = { started = true, debounce = true }

local function key_of(user, hash) return prefix .. 'unique:' .. user .. ':' .. hash end

-- The task that has the key; nil where none has it any more. Second: for how many ms it has it whatever it does.
function pointers.holder(user, hash)
  local key = key_of(user, hash)
  local id = call('GET', key)
  if not id then return nil end
  local left = call('PTTL', key)
  if left >= 0 then return id, left end
  local held = call('HGET', task_key(user, id), 'unique')
  return held and string.match(held, ' (%S+) ') == hash and id or nil
end

-- `ms`: nil for as long as the task has it.
function pointers.point(user, hash, id, ms)
  if ms then call('SET', key_of(user, hash), id, 'PX', ms) else call('SET', key_of(user, hash), id) end
end

-- Of a task that does not need its key any more. `lingers`: it has run to its end, after which some keep it for a time.
function pointers.let_go(user, id, unique, lingers)
  local kind, hash, ms = string.match(unique, '^(%S+) (%S+) (%d+)$')
  if not kind then return end
  local key = key_of(user, hash)
  if redis.pcall('GET', key) ~= id then return end
  if lingers and kind == 'after' then call('PEXPIRE', key, ms) else call('DEL', key) end
end

-- It begins.
function pointers.begin(user, id, unique)
  if not OVER_AT_THE_BEGIN[string.match(unique, '^%S+')] then return end
  pointers.let_go(user, id, unique)
  call('HDEL', task_key(user, id), 'unique')
end
end

-- lib/ends.lua
-- What comes of the end of a task, beside what is told to those that depend on it: its callbacks are put in, past all quotas, and
-- its batch counts it, in the script that ends it. A task with either, or with children, has the fields `linked` and `ends`, so
-- that the others pay nothing at their end.
-- ends:<u>:<id>  string  {life, {{kind, priority, when, body, what is kept for its own end or ''} ...}, batch or ''}: what
--                        fails may be requeued, which is another life
local endings
do

local function new_endings()
  local it = {}
  local KIND_OF = { finished = 'on_success', failed = 'on_failure' }
  local TOO_LARGE = 'not told: too large for a message'

  -- Made by the first that needs them.
  local known_batches
  function it.batches()
    if known_batches then return known_batches end

    -- lib/batches.lua
    -- Batches: any number of tasks of one user, counted as they end. When all have, and nobody adds to it any more, its callbacks are
    -- put in by the script in which the last of them ended.
    -- batch:<u>:<b>        hash  state: open, closed, canceled or abandoned. total, finished, failed, canceled: of its tasks.
    --                            on_complete, on_success: as `ends` has them, until they are put in. nonce: of the call that opened
    --                            it; created, complete: ms; ttl_ms: after which one to which nobody adds is abandoned; keep_ms and
    --                            dead_ms: how long it is kept when all have ended, and when some have failed
    -- batch-tasks:<u>:<b>  set   its tasks that have not ended
    -- batches:<u>          zset  open ones of a user → ms when they are abandoned
    -- batches              zset  users with some → ms of the first one, or of the last turn of a user that has more

    local function new_batches(endings_of_tasks)
      local batches = {}
      local USERS, OF_A_USER = 20, 10 -- that one call abandons
      local users_with_some = prefix .. 'batches'
      local function batch_key(user, batch) return prefix .. 'batch:' .. user .. ':' .. batch end
      local function tasks_key(user, batch) return prefix .. 'batch-tasks:' .. user .. ':' .. batch end
      local function open_key(user) return users_with_some .. ':' .. user end
      batches.tasks_key = tasks_key

      local function number_in(field) return tonumber(field or 0) end

      -- What its callbacks take leaves the count of bytes, or comes.
      local function weigh(user, batch, sign)
        if bytes then bytes.change_batch(user, batch, sign) end
      end

      local function forget_open(user, batch)
        if call('ZREM', open_key(user), batch) == 1 and call('EXISTS', open_key(user)) == 0 then call('ZREM', users_with_some, user) end
      end

      function batches.state(user, batch) return call('HGET', batch_key(user, batch), 'state') or nil end

      -- Reads what the end of one of its tasks writes.
      function batches.prove(user, batch)
        call('HLEN', batch_key(user, batch))
        call('SCARD', tasks_key(user, batch))
      end

      -- Whether more tasks may be added: by anybody while it is open, and once it is closed by its own tasks that have not ended.
      function batches.takes_more(user, batch, adder)
        local state = batches.state(user, batch)
        return state == 'open' or state == 'closed' and call('SISMEMBER', tasks_key(user, batch), adder) == 1
      end

      -- 'new', also by an earlier try of the same call, 'joined' where it is open already, or 'over'.
      function batches.open(user, batch, nonce, ttl_ms, keep_ms, dead_ms, on_complete, on_success)
        local key = batch_key(user, batch)
        local known = call('HMGET', key, 'nonce', 'state')
        if known[1] == nonce then return 'new' end
        if known[2] then return known[2] == 'open' and 'joined' or 'over' end
        call('ZADD', open_key(user), now + ttl_ms, batch)
        call('ZADD', users_with_some, 'LT', now + ttl_ms, user)
        call('HSET', key, 'state', 'open', 'nonce', nonce, 'created', now_text, 'ttl_ms', ttl_ms, 'keep_ms', keep_ms, 'dead_ms', dead_ms)
        if on_complete then call('HSET', key, 'on_complete', on_complete) end
        if on_success then call('HSET', key, 'on_success', on_success) end
        weigh(user, batch, 1)
        return 'new'
      end

      function batches.add(user, batch, id)
        local key = batch_key(user, batch)
        if call('SADD', tasks_key(user, batch), id) == 0 then return end
        call('HINCRBY', key, 'total', 1)
        local known = call('HMGET', key, 'state', 'ttl_ms')
        if known[1] == 'open' then call('ZADD', open_key(user), 'XX', 'GT', now + number_in(known[2]), batch) end
      end

      -- What its callbacks are told: models.BatchProgress.
      local function told_of(batch, known)
        return 'B' .. cmsgpack.pack({ batch, known[1], number_in(known[2]), number_in(known[3]), number_in(known[4]), number_in(known[5]),
          number_in(known[6]), number_in(known[7]) })
      end

      local function call_back(user, batch, kind, known, step_us)
        local packed = call('HGET', batch_key(user, batch), kind)
        if not packed then return 0 end
        call('HDEL', batch_key(user, batch), kind)
        return endings_of_tasks.put_all_in(user, batch, packed, told_of(batch, known), step_us)
      end

      -- Nobody adds to it any more, and all have ended. Returns how many tasks may be served now.
      local function complete(user, batch, step_us)
        local key = batch_key(user, batch)
        call('HSETNX', key, 'complete', now_text)
        local known = call('HMGET', key, 'state', 'total', 'finished', 'failed', 'canceled', 'created', 'complete', 'keep_ms', 'dead_ms')
        weigh(user, batch, -1)
        local queued = call_back(user, batch, 'on_complete', known, step_us)
        local failed, canceled = number_in(known[4]), number_in(known[5])
        if known[1] == 'closed' and failed + canceled == 0 then
          queued = queued + call_back(user, batch, 'on_success', known, step_us)
        end
        call('PEXPIRE', key, failed > 0 and known[9] or known[8])
        weigh(user, batch, 1)
        publish(user, 'batch:' .. batch, 'complete')
        return queued
      end

      -- Of one that is gone nothing comes.
      function batches.complete_if_over(user, batch, step_us)
        local state = batches.state(user, batch)
        if not state or state == 'open' or call('EXISTS', tasks_key(user, batch)) == 1 then return 0 end
        return complete(user, batch, step_us)
      end

      -- How one of its tasks ended: finished, failed or canceled. Returns how many tasks may be served now.
      function batches.note_end(user, batch, id, outcome, step_us)
        if call('SREM', tasks_key(user, batch), id) == 0 or not batches.state(user, batch) then return 0 end
        call('HINCRBY', batch_key(user, batch), outcome, 1)
        return batches.complete_if_over(user, batch, step_us)
      end

      -- One that had not ended is no task of it any more.
      function batches.drop(user, batch, id)
        if call('SREM', tasks_key(user, batch), id) == 1 and batches.state(user, batch) then
          call('HINCRBY', batch_key(user, batch), 'total', -1)
        end
      end

      -- Of a user that is erased: nobody adds to it any more, and its tasks are gone.
      function batches.erase_if_empty(user, batch)
        if batches.state(user, batch) == 'open' or call('EXISTS', tasks_key(user, batch)) == 1 then return end
        weigh(user, batch, -1)
        call('UNLINK', batch_key(user, batch))
      end

      -- A dead letter of it is brought back.
      function batches.note_requeue(user, batch, id)
        local key = batch_key(user, batch)
        if not batches.state(user, batch) or call('SADD', tasks_key(user, batch), id) == 0 then return end
        call('HINCRBY', key, 'failed', -1)
        weigh(user, batch, -1)
        call('PERSIST', key)
        weigh(user, batch, 1)
      end

      -- `state`: closed, canceled or abandoned. What is over stays as it is. Returns how many tasks may be served now.
      function batches.end_adding(user, batch, state, step_us)
        local key = batch_key(user, batch)
        local before = batches.state(user, batch)
        forget_open(user, batch)
        if before ~= 'open' and (state ~= 'canceled' or call('EXISTS', tasks_key(user, batch)) == 0) then return 0 end
        call('HSET', key, 'state', state)
        return batches.complete_if_over(user, batch, step_us)
      end

      local function abandon_some_of(user, step_us)
        local queued = 0
        for _, batch in ipairs(call('ZRANGEBYSCORE', open_key(user), '-inf', now, 'LIMIT', 0, OF_A_USER)) do
          queued = queued + batches.end_adding(user, batch, 'abandoned', step_us)
        end
        local first = call('ZRANGE', open_key(user), 0, 0, 'WITHSCORES')[2]
        if first then
          call('ZADD', users_with_some, math.max(now, first), user)
        else
          call('ZREM', users_with_some, user)
        end
        return queued
      end

      -- Those that were never closed, by turns of users. woken: user → tasks that may be served now.
      function batches.abandon(step_us, woken)
        for _, user in ipairs(call('ZRANGEBYSCORE', users_with_some, '-inf', now, 'LIMIT', 0, USERS)) do
          local is_done, queued = pcall(abandon_some_of, user, step_us)
          if is_done then
            if queued > 0 then woken[user] = (woken[user] or 0) + queued end
          else
            damage().note(user, queued)
            call('ZADD', users_with_some, damage().next_ms, user)
          end
        end
      end

      -- Of one that is gone.
      function batches.forget(user, batch)
        call('UNLINK', tasks_key(user, batch))
        forget_open(user, batch)
      end

      -- Where an open one belongs, and no other.
      function batches.list(user, batch, state)
        if state ~= 'open' then return forget_open(user, batch) end
        local ends_at = now + number_in(call('HGET', batch_key(user, batch), 'ttl_ms'))
        call('ZADD', open_key(user), ends_at, batch)
        call('ZADD', users_with_some, 'LT', ends_at, user)
      end

      -- Where what is counted says that all have ended, and nobody was told.
      function batches.is_over_untold(user, batch)
        local known = call('HMGET', batch_key(user, batch), 'state', 'complete', 'total', 'finished', 'failed', 'canceled')
        if known[1] == 'open' or known[2] or call('EXISTS', tasks_key(user, batch)) == 1 then return false end
        return number_in(known[3]) <= number_in(known[4]) + number_in(known[5]) + number_in(known[6])
      end

      -- Open ones of a user that is erased. Returns how many.
      function batches.purge(user, most)
        local some = call('ZRANGE', open_key(user), 0, most - 1)
        for _, batch in ipairs(some) do
          weigh(user, batch, -1)
          call('UNLINK', batch_key(user, batch), tasks_key(user, batch))
          forget_open(user, batch)
        end
        return #some
      end

      return batches
    end
    known_batches = new_batches(it)
    return known_batches
  end

  -- The callbacks of a call, as they are kept.
  function it.pack(callbacks, batch)
    local kept = {}
    for at, callback in ipairs(callbacks) do
      local kind, priority, when, body, after = callback[1], callback[2], callback[3], ARGV[callback[4]] or '', callback[5]
      kept[at] = { kind, priority, when, body, after[1] and it.pack(after) or '' }
    end
    return cmsgpack.pack({ 1, kept, batch or '' })
  end

  local function write(user, id, packed, ...)
    call('SET', ends_key(user, id), packed, ...)
    if bytes then bytes.change_ends(user, id, 1) end
  end

  -- By the fields whoever ends the task knows that there is something.
  function it.mark(user, id)
    call('HSETNX', task_key(user, id), 'linked', 1)
    call('HSET', task_key(user, id), 'ends', 1)
  end

  function it.keep(user, id, packed)
    it.mark(user, id)
    write(user, id, packed)
  end

  function it.prove_places(user)
    choice.know(user)
    for _, where in ipairs({ 'critical', 'normal', 'scheduled' }) do call('ZCARD', place_key(where, user)) end
  end

  -- Reads each key that callbacks of the task would be written to: one of another type shows before it ends.
  function it.prove(user, id)
    call('UNLINK', children_key('', '')) -- nobody's, so it changes nothing: is it permitted?
    local packed = call('GET', ends_key(user, id))
    if not packed then return end
    local batch = cmsgpack.unpack(packed)[3]
    if batch ~= '' then it.batches().prove(user, batch) end
    it.prove_places(user)
  end

  -- Of message.Record, without what may be large.
  local function shortened(record)
    local first = { cmsgpack.unpack_limit(record, 6, 11) }
    local name, attempt, queued, started, run, worker = unpack(first, 2, 7)
    local kind, type_name = nil, ''
    if string.sub(record, 10, 10) ~= 'F' then
      local all = cmsgpack.unpack(string.sub(record, 11))
      kind, type_name = all[9], string.sub(tostring(all[10]), 1, 200)
    end
    return string.sub(record, 1, 10) .. '\156' .. cmsgpack.pack(name, attempt, queued, started, run, worker, nil, false, kind,
      type_name, TOO_LARGE, '')
  end

  -- The message of a callback, an array of four, with two more: whose end it is, and the record of that.
  local function told(body, id, record)
    if string.byte(body, 19) ~= 148 then return body end
    return string.sub(body, 1, 18) .. '\150' .. string.sub(body, 20) .. cmsgpack.pack(id) .. '\198'
      .. struct.pack('>I4', #record) .. record
  end

  local function message_of(user, id, body)
    local record = call('GET', result_key(user, id)) or ''
    local made, most = told(body, id, record), tonumber(call('HGET', prefix .. 'settings', 'max_message_bytes'))
    return most and #made > most and told(body, id, shortened(record)) or made
  end

  -- One that is taken is no reason to do nothing.
  local function free_id(user, id)
    if call('EXISTS', body_key(user, id), result_key(user, id)) == 0 then return id end
    return id .. '-' .. string.format('%d', next_arrival())
  end

  -- `of`: the task, or batch, whose end it is. Returns whether it may be served now.
  local function put_in(user, id, of, callback, body, step_us)
    local _, priority, when, _, after = unpack(callback)
    local due = due_at(when)
    call('SET', body_key(user, id), body)
    call('HSET', task_key(user, id), 'parent', of)
    if bytes then bytes.change(user, 'body:' .. id, #body) end
    if after ~= '' then it.keep(user, id, after) end
    if call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0 then call('HSET', task_key(user, id), 'linked', 1) end
    if due > now then
      call('HSET', task_key(user, id), 'state', 'scheduled', 'priority', priority, 'enqueued', now)
      schedule(user, id, due)
      return false
    end
    choice.know(user)
    return place(user, id, score_of(priority, step_us))
  end

  -- Takes what is kept for this end: what failed has it for another life as well, for `ttl` ms. Nil: nothing.
  local function take(user, id, outcome, ttl)
    local packed = call('GET', ends_key(user, id))
    if not packed then return nil end
    local life, callbacks, batch = unpack(cmsgpack.unpack(packed))
    if bytes then bytes.change_ends(user, id, -1) end
    if outcome == 'failed' then
      write(user, id, cmsgpack.pack({ life + 1, callbacks, batch }), 'PX', ttl)
    else
      call('DEL', ends_key(user, id))
    end
    return life, callbacks, batch
  end

  -- A second one of its kind, and one of a second life, has a number.
  local function names_of(id, life, callbacks)
    local of_kind, names, seen = {}, {}, {}
    for _, callback in ipairs(callbacks) do of_kind[callback[1]] = (of_kind[callback[1]] or 0) + 1 end
    for at, callback in ipairs(callbacks) do
      local kind = callback[1]
      seen[kind] = (seen[kind] or 0) + 1
      local number = (life - 1) * of_kind[kind] + seen[kind]
      names[at] = id .. '.' .. kind .. (number > 1 and string.format('-%d', number) or '')
    end
    return names
  end

  -- `outcome`: finished, failed or canceled; of others nothing comes. Returns how many may be served now.
  function it.call_back(user, id, outcome, step_us, ttl)
    if outcome ~= 'finished' and outcome ~= 'failed' and outcome ~= 'canceled' then return 0 end
    if outcome == 'failed' then call('PEXPIRE', children_key(user, id), ttl) else call('UNLINK', children_key(user, id)) end
    local life, callbacks, batch = take(user, id, outcome, ttl)
    if not life then return 0 end
    local queued, names = 0, names_of(id, life, callbacks)
    for at, callback in ipairs(callbacks) do
      if callback[1] == 'on_end' or callback[1] == KIND_OF[outcome] then
        local body = message_of(user, id, callback[4])
        if put_in(user, free_id(user, names[at]), id, callback, body, step_us) then queued = queued + 1 end
      end
    end
    return queued + (batch ~= '' and it.batches().note_end(user, batch, id, outcome, step_us) or 0)
  end

  -- Callbacks of a batch; `record` is what they are told of it. Returns how many may be served now.
  function it.put_all_in(user, batch, packed, record, step_us)
    local queued, life, callbacks = 0, unpack(cmsgpack.unpack(packed))
    local names = names_of(batch, life, callbacks)
    for at, callback in ipairs(callbacks) do
      local body = told(callback[4], batch, record)
      if put_in(user, free_id(user, names[at]), batch, callback, body, step_us) then queued = queued + 1 end
    end
    return queued
  end

  -- Of a task that is erased, or gives its place to another: nobody is called, and nothing is counted. Returns its batch.
  function it.drop(user, id)
    local packed = call('GET', ends_key(user, id))
    if not packed then return end
    local batch = cmsgpack.unpack(packed)[3]
    if batch ~= '' then it.batches().drop(user, batch, id) end
    if bytes then bytes.change_ends(user, id, -1) end
    call('DEL', ends_key(user, id))
    return batch ~= '' and batch or nil
  end

  -- A dead letter is brought back.
  function it.note_requeue(user, id)
    local packed = call('GET', ends_key(user, id))
    local batch = packed and cmsgpack.unpack(packed)[3] or ''
    if batch ~= '' then it.batches().note_requeue(user, batch, id) end
  end

  return it
end

local known_endings
function endings()
  known_endings = known_endings or new_endings()
  return known_endings
end
calls[#calls + 1] = function()
  known_endings = nil
  return NEXT
end
end
local announce
local announcements
local end_canceled
local known_of
do

-- has_ends: whether something is kept for its end (lib/ends.lua). `dependents`: of one that finished, as lib/depend.lua has
-- them.
function announce(user, id, outcome, has_ends, dependents)
  announcements[#announcements + 1] = { user, id, outcome, has_ends and true or false, dependents }
end

-- The fields of message.Record, after the first nine bytes of the body and the letter of the state. What did not run
-- started and ended now.
local function canceled_record(body, known, reason, origin)
  local ran = known.state == 'started'
  local started = ran and tonumber(known.started) or now
  local attempt = ran and attempt_in(known.attempt) or tonumber(known.attempt or 0)
  local queued = tonumber(known.queued or known.enqueued) or not ran and known.came and math.floor(known.came / 1000) or started
  return string.sub(body, 1, 9) .. 'C' .. (origin and '\157' or '\156') .. cmsgpack.pack(name_in(body), attempt, queued,
    started, now - started, ran and known.worker or '', nil, true, nil, 'TaskCanceled', reason, '') .. (origin and cmsgpack.pack(origin) or '')
end

function known_of(key)
  local flat, known = call('HGETALL', key), {}
  for at = 1, #flat, 2 do known[flat[at]] = flat[at + 1] end
  return known
end

-- The end of a task that did not run to its end, and has left its place already: a record that says so, kept for `ttl` ms, and
-- nothing else is left of it. `origin`: of one that a dependency ended, the task with which that began.
function end_canceled(user, id, reason, ttl, origin)
  local known = known_of(task_key(user, id))
  if known.ends then endings().prove(user, id) end
  local body = redis.pcall('GET', body_key(user, id))
  if type(body) ~= 'string' then body = string.rep('\0', 9) end -- lost, or not a message at all
  if bytes then bytes.lift(user, id) end
  call('SET', result_key(user, id), canceled_record(body, known, reason, origin), 'PX', ttl)
  call('DEL', needs_key(user, id), keys_of_task(user, id))
  call('PEXPIRE', chunks_key(user, id), ttl)
  if known.unique then pointers.let_go(user, id, known.unique) end
  if known.expires then deadlines.forget(user, id) end
  if known.linked then announce(user, id, 'canceled', known.ends) end
  if bytes then bytes.lay(user, id) end
  tally(user, 'canceled')
  publish(user, id, 'canceled')
end
calls[#calls + 1] = function()
  announcements = {}
  return NEXT
end
end

-- lib/depend.lua
-- Dependencies. `uses` of a task holds what it depends on, `feeds` of a task those that depend on it and have not ended: the
-- two mirror each other. `needs` holds what a deferred task still waits for. While somebody is in `feeds` of a task, its
-- result has no time to live, so that what a living task is given by others lives as long as it does. A dead letter may be
-- requeued, and counts as living.
-- A task in either has the field `linked`, so that the others pay nothing at their end. Of a result that is kept for others
-- it is the time to live, in ms, that begins when the last of them has ended; else it is 1.

-- Mostly it is one. Lua unpacks a few thousand at a time.
local function add_all_to(set, members)
  if not members[2] then
    if members[1] then call('SADD', set, members[1]) end
    return
  end
  for at = 1, #members, 1000 do call('SADD', set, unpack(members, at, math.min(at + 999, #members))) end
end

-- A function of lib/cancel.lua, below.
local cancel_task

local function new_links()
  local it = {}

  local STEP, TURN = 500, 50 -- tasks that one call passes outcomes on to, and of one user at a time while others wait
  local LAPSES, LOOKS = 100, 20 -- dead letters that one call gives up, and users of whom it does
  local lapsing_key = prefix .. 'lapsing'

  -- `ttl`: in ms, nil for none.
  local function set_ttl(user, id, ttl)
    local result, size = result_key(user, id), nil
    if bytes then
      size = call('STRLEN', result)
      bytes.change(user, 'result:' .. id, -size, bytes.expiry_of(result))
    end
    if ttl then call('PEXPIRE', result, ttl) else call('PERSIST', result) end
    if bytes then bytes.lay_result(user, id, size) end
  end

  function it.keep_result(user, id)
    local ttl = call('PTTL', result_key(user, id))
    if ttl < 0 then return call('HSETNX', task_key(user, id), 'linked', 1) end
    it.note_kept(user, id, ttl)
    set_ttl(user, id, nil)
  end

  -- Of a task that finishes: those that depend on it, or as many as one call informs. Nil where they cannot be read, which
  -- shows when they are told.
  function it.dependents_of(user, id)
    local found = redis.pcall('SRANDMEMBER', feeds_key(user, id), STEP)
    return not found.err and found or nil
  end

  -- Its result was written without a time to live, as others depend on it.
  function it.note_kept(user, id, ttl) call('HSET', task_key(user, id), 'linked', ttl > 2 and ttl or '2') end

  -- Of a task that has ended for good nothing is kept but what others need: its callbacks may be about to be put in.
  local function is_needed_itself(user, id)
    return call('EXISTS', uses_key(user, id), ends_key(user, id), children_key(user, id)) > 0
      and call('EXISTS', body_key(user, id)) == 1
  end

  -- Nobody depends on it any more.
  local function let_go(user, id)
    local key = task_key(user, id)
    local linked = call('HGET', key, 'linked')
    local ttl = tonumber(linked or 0)
    if ttl > 1 then
      set_ttl(user, id, ttl)
    elseif linked and not is_needed_itself(user, id) then
      take_moment(lapsing_key, place_key('lapsing', user), user, id)
    else
      return
    end
    call('HDEL', key, 'linked')
  end

  -- `dependents`: ids of those that depend on it from now on.
  function it.feed(user, id, dependents, is_finished)
    add_all_to(feeds_key(user, id), dependents)
    if is_finished then it.keep_result(user, id) else call('HSETNX', task_key(user, id), 'linked', 1) end
  end

  function it.link(user, id, dependency)
    call('SADD', uses_key(user, id), dependency)
    call('HSETNX', task_key(user, id), 'linked', 1)
    it.feed(user, dependency, { id }, call('GETRANGE', result_key(user, dependency), 9, 9) == 'F')
  end

  local function stop_using(user, id, most)
    local used = call('SPOP', uses_key(user, id), most)
    for _, dependency in ipairs(used) do
      local feeds, informed = feeds_key(user, dependency), informed_key(user, dependency)
      if call('SREM', feeds, id) == 0 then call('SREM', informed, id) end
      if call('EXISTS', feeds, informed) == 0 then let_go(user, dependency) end
    end
    return #used
  end

  -- Out of its place. Reads each key that its leaving writes, so that one of another type shows before. What it depends on
  -- hears of it when its end is passed on, or by `forget`.
  function it.leave_deferred(user, id)
    call('SCARD', needs_key(user, id))
    call('SCARD', uses_key(user, id))
    call('SCARD', place_key('deferred', user))
    call('DEL', needs_key(user, id))
    call('SREM', place_key('deferred', user), id)
    count('deferred', -1)
  end

  -- Of a task that is erased, as those that depend on it will be. Returns how much it used.
  function it.forget(user, id)
    local used = stop_using(user, id, call('SCARD', uses_key(user, id)))
    if call('EXISTS', feeds_key(user, id), informed_key(user, id)) == 1 then call('HSET', task_key(user, id), 'linked', 1) end
    return used
  end

  -- It waits in its lane, and is like one that was put in there: of which nothing is written, so that neither its claim nor
  -- its end look closer, unless there is more to it.
  local function note_queued(user, known)
    local key = task_key(user, known.id)
    if known.watched or known.unique then
      call('HSET', key, 'state', 'queued', 'queued', now_text)
    else
      call('HDEL', key, 'state', 'on_failure', 'waits')
    end
  end

  -- From their place among the deferred ones, which they leave first, to where they go on. In the order in which they came.
  local released = {}
  local function release(user, some, step_us)
    local ids, scored, first = {}, {}, nil
    for at, known in ipairs(some) do
      ids[at] = known.id
      known.due = known.delay and now + known.delay or tonumber(known.due or 0)
      known.head = head_of_task(user, known.id)
    end
    choice.know(user)
    call('SREM', place_key('deferred', user), unpack(ids))
    count('deferred', -#ids)
    for _, known in ipairs(some) do
      local priority = priority_of(known.head)
      if known.due > now then
        schedule(user, known.id, known.due)
        call('HSET', task_key(user, known.id), 'state', 'scheduled', 'due', known.due, 'priority', priority)
      else
        local lane, score = score_of(priority, step_us)
        local of_lane = scored[lane] or {}
        of_lane[#of_lane + 1], of_lane[#of_lane + 2], scored[lane] = score, known.id, of_lane
        first = first or known
      end
    end
    local queued = 0
    for lane, of_lane in pairs(scored) do
      call('ZADD', place_key(lane, user), unpack(of_lane))
      count(lane, #of_lane / 2)
      queued = queued + #of_lane / 2
    end
    for _, known in ipairs(some) do
      if known.due <= now then note_queued(user, known) end
    end
    if first and admit(user, cost_of(first.head)) then released[user] = (released[user] or 0) + queued end
    for _, known in ipairs(some) do
      if known.watched then publish(user, known.id, 'waiting') end
    end
  end

  -- 'go' on without it, 'end' as well, or 'wait' on: for a task that failed, as it may be requeued, and with `wait-on` for
  -- whatever has this id next.
  local function verdict(on_failure, outcome)
    if outcome == 'finished' or on_failure == 'run' then return 'go' end
    if on_failure == 'cancel' or outcome ~= 'failed' and on_failure == 'wait' then return 'end' end
    return 'wait'
  end
  it.verdict = verdict

  -- The task with which it began that one ends by this dependency: of one that was canceled itself, its record tells.
  local origins = {}
  function it.origin_of(user, dependency, outcome)
    if outcome ~= 'canceled' then return dependency end
    local key = result_key(user, dependency)
    if not origins[key] then
      local record = redis.pcall('GET', key)
      local is_read, fields = pcall(cmsgpack.unpack, type(record) == 'string' and string.sub(record, 11) or '')
      origins[key] = is_read and type(fields) == 'table' and type(fields[13]) == 'string' and fields[13] or dependency
    end
    return origins[key]
  end

  function it.reason_of(user, dependency, outcome)
    local origin, reason = it.origin_of(user, dependency, outcome), 'dependency ' .. dependency .. ' ' .. outcome
    return origin == dependency and reason or reason .. ', which began with ' .. origin
  end

  -- One dependent learns how one of its dependencies ended. It may have waited for another task of that id, which finished.
  -- True: it is to be released.
  local function inform(user, known, dependency, outcome, ttl)
    local id = known.id
    if known.with_parent == dependency and outcome == 'canceled' then
      cancel_task(user, id, 'its parent ' .. dependency .. ' was canceled', ttl)
      return false
    end
    if known.state ~= 'deferred' then return false end
    local does, needs = verdict(known.on_failure, outcome), needs_key(user, id)
    if does == 'go' then
      if call('SREM', needs, dependency) == 0 then return false end
      return known.waits_for_one or call('EXISTS', needs) == 0
    elseif does == 'end' and call('SISMEMBER', needs, dependency) == 1 then
      it.leave_deferred(user, id)
      end_canceled(user, id, it.reason_of(user, dependency, outcome), ttl, it.origin_of(user, dependency, outcome))
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

  -- Those that were told while others had yet to be are joined with the others.
  local function end_announcement(user, id, outcome)
    local feeds, informed = feeds_key(user, id), informed_key(user, id)
    if call('EXISTS', informed) == 1 then
      add_all_to(informed, call('SMEMBERS', feeds)) -- who came since: mostly nobody
      call('RENAME', informed, feeds)
    end
    if call('EXISTS', feeds) == 0 then
      let_go(user, id)
    elseif outcome == 'finished' then
      it.keep_result(user, id)
    else
      call('HSETNX', task_key(user, id), 'linked', 1)
    end
  end

  local function came_before(one, other) return one.came < other.came end

  -- A set has no order of its own: those who came first go on first, among as many as one call informs.
  local function in_order(user, ids)
    local some = {}
    for at, id in ipairs(ids) do
      local fields = call('HMGET', task_key(user, id), 'came', 'state', 'on_failure', 'unique', 'due', 'delay', 'watched',
        'waits', 'with_parent')
      some[at] = { id = id, came = tonumber(fields[1] or 0), state = fields[2], on_failure = fields[3], unique = fields[4],
        due = fields[5], delay = fields[6], watched = fields[7], waits_for_one = fields[8] == '1', with_parent = fields[9] }
    end
    if some[2] then table.sort(some, came_before) end
    return some
  end

  -- Of those who are told, some may be canceled, and leave `feeds` when their own end is passed on.
  local being_told
  local function tell_all(user, id, outcome, dependents, free, step_us, ttl)
    for _, known in ipairs(dependents) do
      being_told = known
      if inform(user, known, id, outcome, ttl) then free[#free + 1] = known end
    end
    being_told = nil
    if free[1] then release(user, free, step_us) end
  end

  local function tell(user, id, outcome, dependents, step_us, ttl)
    local free = {}
    being_told = nil
    local is_done, failure = pcall(tell_all, user, id, outcome, dependents, free, step_us, ttl)
    if is_done then return end
    local told = being_told
    free[#free + 1] = told
    for _, known in ipairs(free) do damage().leave_deferred(user, known.id, id) end
    damage().fail(user, failure, told and told.id)
  end

  -- What has ended for good uses nothing any more. Returns how much it was, and whether there is more.
  local function leave_used(user, id, outcome, most)
    if outcome == 'failed' then return 0, false end
    local used = stop_using(user, id, most)
    return used, used == most
  end

  -- The same as pass_on of what has just ended, while nothing was put off: how it stands is known, and all of `feeds` have
  -- yet to be told. `dependents`: those, where they are known; a result that they need is kept for them already.
  local function pass_on_at_once(user, id, outcome, dependents, most, step_us, ttl)
    local ids = dependents or call('SRANDMEMBER', feeds_key(user, id), most)
    if #ids >= most then return 0, false end
    if ids[1] then tell(user, id, outcome, in_order(user, ids), step_us, ttl) end
    local used, has_more = leave_used(user, id, outcome, most)
    return #ids + math.max(1, used), not has_more
  end

  -- Informs at most `most` dependents of one task; returns how many, and whether that was all.
  local function pass_on(user, id, told, most, step_us, ttl)
    local outcome = standing_outcome(user, id, told)
    if not outcome then
      end_announcement(user, id)
      return 1, true
    end
    local feeds, informed = feeds_key(user, id), informed_key(user, id)
    local ids = call('SRANDMEMBER', feeds, most)
    if ids[1] then
      tell(user, id, outcome, in_order(user, ids), step_us, ttl)
      if #ids == most or call('EXISTS', informed) == 1 then
        call('SADD', informed, unpack(ids))
        call('SREM', feeds, unpack(ids))
        if call('EXISTS', feeds) == 1 then return #ids + 1, false end
      end
    end
    local used, has_more = leave_used(user, id, outcome, most)
    if has_more then return #ids + used, false end
    end_announcement(user, id, outcome)
    return #ids + math.max(1, used), true
  end

  local function attempt(act, user, id, ...)
    local is_done, informed, all = pcall(act, user, id, ...)
    if not is_done then damage().fail(user, informed, id) end
    return informed, all
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

  local function wake_released()
    for user, tasks in pairs(released) do wake(user, tasks) end
    released = {}
  end

  function it.put_off_from(first, step_us, ttl)
    for at = first, #announcements do put_off(unpack(announcements[at])) end
    wake_from(prefix .. 'waiting', 1)
    it.call_back(step_us, ttl)
    wake_released()
  end

  local put_off_before = tonumber(has_announcements or 0)
  local function are_put_off() return put_off_before + (counts.announcements or 0) > 0 end

  -- The oldest one of the user whose turn it is, or a part of it. Returns how many it informed.
  local turn = 0
  local function take_turn_of(user, has_others, budget, step_us, ttl)
    local line, most = line_of(user), has_others and math.min(budget, TURN) or budget
    local packed = call('LINDEX', line, 0)
    local informed, all = 1, false
    if packed then
      local oldest = cmsgpack.unpack(packed)
      informed, all = attempt(pass_on, user, oldest[1], oldest[2], most, step_us, ttl)
    end
    if all then
      call('LPOP', line)
      count('announcements', -1)
    end
    turn = turn + 1
    if call('EXISTS', line) == 1 then call('ZADD', turns_key, now_us + turn, user) else call('ZREM', turns_key, user) end
    return informed
  end

  -- lapsing      zset  users with dead letters that are linked → ms when the first of each is given up
  -- lapsing:<u>  zset  id → ms when it is given up
  function it.lapse_at(user, id, ms)
    local at = string.format('%d', ms)
    call('ZADD', place_key('lapsing', user), at, id)
    call('ZADD', lapsing_key, 'LT', at, user)
  end

  function it.lapses(user, id) return call('ZSCORE', place_key('lapsing', user), id) end

  local function give_up(user, id)
    call('ZREM', place_key('lapsing', user), id)
    if call('EXISTS', body_key(user, id)) == 1 then
      -- One of its id was put in since: it stops using what this one did.
      if call('HGET', task_key(user, id), 'state') ~= 'failed' then return call('HSETNX', task_key(user, id), 'linked', 1) end
      erase_task(user, id)
    end
    put_off(user, id, 'expired')
  end

  local function give_up_of(user, most)
    local own = place_key('lapsing', user)
    for _, id in ipairs(call('ZRANGEBYSCORE', own, '-inf', now, 'LIMIT', 0, most)) do
      local is_done, failure = pcall(give_up, user, id)
      if not is_done then
        call('ZADD', own, damage().next_ms, id)
        damage().note(user, failure, id)
      end
    end
    end_turn(lapsing_key, own, user)
  end

  -- By turns of users. Whoever waits for them is told, and what they used is let go, by the calls that follow.
  function it.give_up_lapsed()
    local users = call('ZRANGEBYSCORE', lapsing_key, '-inf', now, 'LIMIT', 0, LOOKS)
    local most = math.floor(LAPSES / #users)
    for _, user in ipairs(users) do
      local is_done, failure = pcall(give_up_of, user, most)
      if not is_done then
        damage().note(user, failure)
        call('ZREM', lapsing_key, user)
      end
    end
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

  -- Of what has ended in this call so far.
  local called = 0
  function it.call_back(step_us, ttl)
    while called < #announcements do
      called = called + 1
      local ended = announcements[called]
      if ended[4] then
        local user, id, outcome = ended[1], ended[2], ended[3]
        damage().attempt(user, function()
          local queued = endings().call_back(user, id, outcome, step_us, ttl)
          if queued > 0 then released[user] = (released[user] or 0) + queued end
        end)
      end
    end
  end

  -- What this call caused is told at once, as long as nothing was put off; what is put off, by turns of users.
  function it.pass_on_outcomes(step_us, ttl)
    local budget, at, failure, goes_on = STEP, 1, nil, are_put_off()
    it.call_back(step_us, ttl)
    while announcements[at] and budget > 0 and not are_put_off() do
      local ended = announcements[at]
      local user, id, outcome = ended[1], ended[2], ended[3]
      local is_done, informed, all
      if outcome == 'finished' or outcome == 'failed' then
        is_done, informed, all = pcall(pass_on_at_once, user, id, outcome, ended[5], budget, step_us, ttl)
      else -- one of its id may have been put in by this very call
        is_done, informed, all = pcall(pass_on, user, id, outcome, budget, step_us, ttl)
      end
      if not is_done then
        local _, told_of = pcall(damage().fail, user, informed, id)
        failure = { user = user, of = told_of }
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
    if goes_on then it.give_up_lapsed() end -- they may be what was put off, and one call gives up so many
    if are_put_off() then wake_from(prefix .. 'waiting', 1) end
    it.call_back(step_us, ttl)
    wake_released()
  end

  return it
end

local links
local function depend()
  links = links or new_links()
  return links
end

calls[#calls + 1] = function()
  links = nil
  return NEXT
end

-- lib/cancel.lua
-- Take a task out of wherever it waits, or tell the worker that runs it.

-- lib/take_out.lua
-- A task leaves the place in which it waits. Named by lib/depend.lua, behind its functions.

-- `state`: queued, scheduled or deferred.
local function take_out(user, id, state)
  local remove = {}

  function remove.queued()
    local held = call('HGET', task_key(user, id), 'held')
    if held then count(call('HGET', task_key(user, id), 'lane'), -1) end
    if held or limited then limiting().drop(user, id, held) end
    for _, lane in ipairs({ 'critical', 'normal' }) do count(lane, -call('ZREM', place_key(lane, user), id)) end
    retire(user)
  end

  function remove.scheduled()
    count('scheduled', -take_moment(due_key, place_key('scheduled', user), user, id))
  end

  function remove.deferred() depend().leave_deferred(user, id) end

  remove[state]()
end

-- The outcome is passed on at the end of the script. Returns 'done' | 'canceling' (its worker was told) | 'ended' (before) |
-- nil when it is not known.
function cancel_task(user, id, reason, ttl)
  if call('EXISTS', result_key(user, id)) == 1 then return 'ended' end
  if call('EXISTS', body_key(user, id)) == 0 then return nil end
  local key = task_key(user, id)
  local state = call('HGET', key, 'state') or 'queued'
  if state == 'failed' then return 'ended' end
  if state == 'started' then
    call('HSETNX', key, 'canceling', reason)
    call('SPUBLISH', prefix .. 'wake:' .. call('HGET', key, 'worker'), user .. ' ' .. id)
    return 'canceling'
  end
  take_out(user, id, state)
  end_canceled(user, id, reason, ttl)
  return 'done'
end

-- What an earlier call put off, and what this one caused: one step of it in each call.
local is_passed_on, passed_on
local function pass_on_outcomes(step_us, ttl)
  if is_passed_on then return end
  is_passed_on = true
  if announcements[1] or tonumber(has_announcements or 0) > 0 then depend().pass_on_outcomes(step_us, ttl) end
  passed_on = #announcements
end

-- What this call caused after that is passed on by those that follow.
local function put_off_outcomes(step_us, ttl)
  if not announcements[passed_on + 1] then return end
  depend().put_off_from(passed_on + 1, step_us, ttl)
  passed_on = #announcements
end
calls[#calls + 1] = function()
  is_passed_on, passed_on = false, 0
  return NEXT
end

-- lib/collect.lua
-- Tasks that are to run together wait among the scheduled ones of their user, until so many of a name wait or the first has
-- waited for so long. Who is served first of a group takes the others along. What is canceled meanwhile, or moved, is
-- met no more: who is left alone runs alone.
-- collecting:<u>       hash  name → the group that is open: the id of its first task
-- collected:<u>:<id>   list  the ids of a group
-- task:<u>:<id>        collect  its group
local collecting
do

local function new_collecting()
  local it = {}
  local KEPT_MS = 86400000 -- of a group after its last task came; then they run apart
  local function open_key(user) return prefix .. 'collecting:' .. user end
  local function group_key(user, group) return prefix .. 'collected:' .. user .. ':' .. group end

  -- It leaves the scheduled ones.
  function it.unschedule(user, id)
    local waiting = place_key('scheduled', user)
    local removed = call('ZREM', waiting, id)
    count('scheduled', -removed)
    local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
    if first then call('ZADD', due_key, 'GT', math.floor(first), user) else call('ZREM', due_key, user) end
    return removed == 1
  end

  -- One of a full group comes to its lane; it takes the others along when it is served.
  local function serve(user, group, step_us)
    for _, id in ipairs(call('LRANGE', group_key(user, group), 0, -1)) do
      if it.unschedule(user, id) then
        local priority = call('HGET', task_key(user, id), 'priority')
        local lane, score = score_of(tonumber(priority or 3), step_us)
        call('HSET', task_key(user, id), 'state', 'queued', 'queued', now)
        if place(user, id, lane, score) then wake(user, 1) end
        return
      end
    end
  end

  function it.add(user, id, group)
    local key = group_key(user, group)
    local waiting = call('RPUSH', key, id)
    call('PEXPIRE', key, KEPT_MS)
    return waiting
  end

  -- Whether a task that came at this ms should be in its group, and is not.
  function it.lacks(user, id, group, came) return came + KEPT_MS > now and not call('LPOS', group_key(user, group), id) end

  -- It is served by itself.
  function it.leave(user, id) call('HDEL', task_key(user, id), 'collect') end

  -- A task has come, and is scheduled. `when`: as `AddedTask` has it.
  function it.join(user, id, name, when, step_us)
    local size = tonumber(string.match(when, '^collect (%d+) '))
    local open = open_key(user)
    local group = call('HGET', open, name)
    if not group or call('EXISTS', group_key(user, group)) == 0 then
      group = id
      call('DEL', group_key(user, group))
      call('HSET', open, name, group)
    end
    local waiting = it.add(user, id, group)
    call('PEXPIRE', open, KEPT_MS)
    call('HSET', task_key(user, id), 'collect', group)
    if waiting < size then return end
    call('HDEL', open, name)
    serve(user, group, step_us)
  end

  -- One of a group is served: the others, as far as they wait for nothing else. Nobody joins it any more.
  function it.others(user, id, group, name)
    local found = {}
    for _, other in ipairs(call('LRANGE', group_key(user, group), 0, -1)) do
      local known = call('HMGET', task_key(user, other), 'collect', 'state', 'held')
      local waits = (known[2] == 'scheduled' or known[2] == 'queued') and not known[3]
      if other ~= id and known[1] == group and waits then found[#found + 1] = { other, known[2] } end
    end
    call('DEL', group_key(user, group))
    if call('HGET', open_key(user), name) == group then call('HDEL', open_key(user), name) end
    return found
  end

  -- Of a user that is purged.
  function it.forget(user)
    for _, group in ipairs(call('HVALS', open_key(user))) do call('DEL', group_key(user, group)) end
    call('DEL', open_key(user))
  end

  return it
end
local collecting_known
function collecting()
  collecting_known = collecting_known or new_collecting()
  return collecting_known
end
calls[#calls + 1] = function()
  collecting_known = nil
  return NEXT
end
end

local function add_task_checks(doctor, dead_letter_ttl_ms, priority_step_ms)
  local checks, wrong = doctor.checks, doctor.wrong
  local SORTED = { 'critical', 'normal', 'held', 'scheduled', 'dead' }
  local STATE_IN = { critical = 'queued', normal = 'queued', held = 'queued', scheduled = 'scheduled',
    deferred = 'deferred', dead = 'failed', ['critical-stream'] = 'started', ['normal-stream'] = 'started' }
  local LETTERS = { F = 'finished', X = 'failed', C = 'canceled' }
  local MOST_DELIVERIES = 1000 -- looked through for a task whose fields are gone

  local function fields_of(user, id)
    local flat, known = call('HGETALL', task_key(user, id)), {}
    for at = 1, #flat, 2 do known[flat[at]] = flat[at + 1] end
    return known
  end

  local function delete(user, id, ...)
    if bytes then bytes.lift(user, id) end
    call('DEL', ...)
    if bytes then bytes.lay(user, id) end
  end

  local function holds(spot, user, id)
    if spot == 'deferred' then return call('SISMEMBER', place_key(spot, user), id) == 1 end
    return call('ZSCORE', place_key(spot, user), id)
  end

  local function delivery(lane, user, stream_id)
    local entry = call('XRANGE', stream_key(lane, user), stream_id, stream_id)[1]
    return entry and entry[2][2]
  end

  -- The stream id of its delivery in a lane.
  local function delivery_of(lane, user, id, known)
    local told = known.stream_id
    if told and told ~= '' then return delivery(lane, user, told) == id and told end
    if known.state then return nil end
    for _, entry in ipairs(call('XRANGE', stream_key(lane, user), '-', '+', 'COUNT', MOST_DELIVERIES)) do
      if entry[2][2] == id then return entry[1] end
    end
  end

  local function places_with(user, id, known)
    local found = {}
    for _, spot in ipairs(SORTED) do
      if holds(spot, user, id) then found[#found + 1] = spot end
    end
    if holds('deferred', user, id) then found[#found + 1] = 'deferred' end
    for _, lane in ipairs({ 'critical', 'normal' }) do
      if delivery_of(lane, user, id, known) then found[#found + 1] = lane .. '-stream' end
    end
    return found
  end

  local function lane_of(spot) return string.match(spot, '^(%a+)%-stream$') end

  local function remove_delivery(lane, user, stream_id)
    local stream = stream_key(lane, user)
    redis.pcall('XACK', stream, 'workers', stream_id)
    call('XDEL', stream, stream_id)
    if call('XLEN', stream) > 0 then return end
    call('DEL', stream)
    call('ZREM', leases_key, lane .. ':' .. user)
  end

  -- Out of a place that it should not be in.
  local function remove_from(spot, user, id, known)
    local lane = lane_of(spot)
    if lane then
      remove_delivery(lane, user, delivery_of(lane, user, id, known))
      count('started', -1)
    elseif spot == 'held' then
      new_limits().drop(user, id, known.held or '')
      if known.lane then count(known.lane, -1) end
    elseif spot == 'deferred' then
      depend().leave_deferred(user, id)
    elseif spot == 'dead' then
      unlist_dead(user, id)
    else
      call('ZREM', place_key(spot, user), id)
      count(spot, -1)
      if spot ~= 'scheduled' then retire(user) end
    end
  end

  -- Its worker, should it live, goes on; else the delivery is stolen, as any other.
  local function deliver_again(user, id, known)
    local stream, stream_id, lane = stream_key(known.lane, user), known.stream_id, known.lane
    redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
    local added = redis.pcall('XADD', stream, stream_id, 'id', id)
    if type(added) == 'table' then return nil end -- others were delivered since
    call('XCLAIM', stream, 'workers', known.worker or 'doctor', 0, stream_id, 'FORCE', 'JUSTID')
    call('ZADD', leases_key, 'NX', now, lane .. ':' .. user)
    return 'in the hands of its worker again'
  end

  local function queue_again(user, id, known)
    local lane, score = known.lane, known.score
    if not score then
      local head = call('GETRANGE', body_key(user, id), 0, 17)
      lane, score = score_of(tonumber(known.priority) or string.byte(head, 18) or 3, priority_step_ms * 1000)
    end
    if next(known) then
      call('HSET', task_key(user, id), 'state', 'queued', 'stream_id', '')
      call('HDEL', task_key(user, id), 'held', 'keys', 'held_since')
      if has_limits then new_limits().drop(user, id) end
    end
    if place(user, id, lane, score) then wake(user, 1) end
    if known.state == 'started' then count('started', -1) else count(lane, -1) end -- it is counted already
    return 'in its lane again'
  end

  local function list_kind_again(user, id, at)
    call('HDEL', task_key(user, id), 'dead_apart')
    local kind = list_by_kind(user, id, call('LINDEX', errors_key(user, id), -1) or '', string.format('%d', at), dead_letter_ttl_ms)
    if call('EXISTS', task_key(user, id)) == 1 then call('HSET', task_key(user, id), 'dead_kind', kind) end
  end

  local function relist(user, id, known)
    call('ZADD', place_key('dead', user), known.ended or now, id)
    call('ZADD', prefix .. 'dead', known.ended or now, user .. ':' .. id)
    call('PEXPIRE', place_key('dead', user), dead_letter_ttl_ms)
    call('PEXPIRE', prefix .. 'dead', dead_letter_ttl_ms)
    list_kind_again(user, id, known.ended or now)
    return 'a dead letter again'
  end

  local function place_again(user, id, known)
    if known.state == 'failed' then return relist(user, id, known) end
    if known.state == 'deferred' then
      call('SADD', place_key('deferred', user), id)
      return 'waits for others again'
    end
    if known.state == 'scheduled' then
      local due = tonumber(known.due or 0)
      schedule(user, id, due > now and due or now)
      count('scheduled', -1)
      return due > now and 'scheduled again' or 'due now, as its time is lost'
    end
    return known.state == 'started' and known.lane and deliver_again(user, id, known) or queue_again(user, id, known)
  end

  -- A task of which nothing can be run: whoever waits for it is told.
  local function give_up(user, id)
    end_canceled(user, id, 'its message was lost', dead_letter_ttl_ms)
    return 'ended as canceled'
  end

  local function is_leftover(user, id)
    local record = call('GETRANGE', result_key(user, id), 0, 8)
    return record ~= '' and record == call('GETRANGE', body_key(user, id), 0, 8)
  end

  local function check_no_place(user, id, known)
    local name = 'body:' .. user .. ':' .. id
    if known.state ~= 'failed' and is_leftover(user, id) then
      return wrong('leftover', name, 'its task has ended', function()
        delete(user, id, keys_of_task(user, id))
        return 'deleted'
      end)
    end
    wrong('no-place', name, 'the task is ' .. (known.state or 'queued') .. ', and in no place', function()
      return place_again(user, id, known)
    end)
  end

  local function best_of(places, known)
    for _, spot in ipairs(places) do
      if STATE_IN[spot] == (known.state or 'queued') then return spot end
    end
    return places[1]
  end

  local function check_many_places(user, id, known, places)
    wrong('many-places', 'task:' .. user .. ':' .. id, table.concat(places, ' and '), function()
      local kept = best_of(places, known)
      for _, spot in ipairs(places) do
        if spot ~= kept then remove_from(spot, user, id, known) end
      end
      return 'only in ' .. kept
    end)
  end

  local function restore_state(user, id, spot)
    local key, lane = task_key(user, id), lane_of(spot)
    call('HSET', key, 'state', STATE_IN[spot])
    if spot == 'dead' then call('HSETNX', key, 'ended', call('ZSCORE', place_key('dead', user), id)) end
    if lane then call('HSETNX', key, 'lane', lane) end
    return 'as its place says'
  end

  -- What it costs when a task is done as a whole: TTLs of its keys.
  local function check_expiry(user, id, is_dead)
    for _, kind in ipairs({ 'task', 'body', 'errors', 'chunks', 'ends', 'children' }) do
      local name = kind .. ':' .. user .. ':' .. id
      local left = call('PTTL', prefix .. name)
      if is_dead and left == -1 then
        wrong('no-expiry', name, 'stays for ever', function()
          call('PEXPIRE', prefix .. name, dead_letter_ttl_ms)
          return 'expires as a dead letter does'
        end)
      elseif not is_dead and left >= 0 then
        wrong('expires', name, 'vanishes in ' .. string.format('%d', left) .. ' ms', function()
          call('PERSIST', prefix .. name)
          return 'stays'
        end)
      end
    end
  end

  local function check_held(user, id, known)
    local name = known.held or ''
    if call('ZSCORE', place_key('held', user) .. ':' .. name, id) then return end
    wrong('held-for-nobody', 'held:' .. user, 'is in no line of a task name', function()
      call('ZREM', place_key('held', user), id)
      queue_again(user, id, known)
      return 'in its lane again'
    end)
  end

  local function check_limited(user, id, known)
    if not known.limited then return end
    for _, k in ipairs(new_limits().keys_in(known.limited)) do
      if call('SISMEMBER', prefix .. 'running:' .. k, user .. ':' .. id) == 0 then
        wrong('uncounted-run', 'running:' .. k, 'a task that runs does not count for its limit', function()
          call('SADD', prefix .. 'running:' .. k, user .. ':' .. id)
          return 'counted'
        end)
      end
    end
  end

  -- It has not begun, and was not given back by a worker that stopped.
  local function check_expiring(user, id, known)
    if tonumber(known.attempt or 0) > 0 or known.paid or call('ZSCORE', place_key('expiring', user), id) then return end
    wrong('not-due', 'expiring:' .. user, 'a task that expires is not looked for', function()
      deadlines.note(user, id, known.expires)
      return 'looked at in time'
    end)
  end

  local function check_key(user, id, known)
    local hash = string.match(known.unique, ' (%S+) ')
    if not hash or pointers.holder(user, hash) then return end
    wrong('lost-key', 'unique:' .. user .. ':' .. hash, 'the task is to be alone under this key', function()
      pointers.point(user, hash, id)
      return 'told anew'
    end)
  end

  -- A key under which a task is alone.
  function checks.unique(user, _, hash)
    if call('EXISTS', prefix .. 'unique:' .. user .. ':' .. hash) == 0 or pointers.holder(user, hash) then return end
    wrong('leftover', 'unique:' .. user .. ':' .. hash, 'the task that had the key does not have it any more', function()
      call('DEL', prefix .. 'unique:' .. user .. ':' .. hash)
      return 'deleted'
    end)
  end

  function checks.expiring(user, id)
    if not call('ZSCORE', place_key('expiring', user), id) then return end
    local known = call('HMGET', task_key(user, id), 'expires', 'state')
    if known[1] and known[2] ~= 'started' and known[2] ~= 'failed' then return end
    wrong('due-without-tasks', 'expiring:' .. user, 'the task has begun, or is gone', function()
      deadlines.forget(user, id)
      return 'removed'
    end)
  end

  local function check_one_place(user, id, known, spot)
    local told, is_dead = known.state, spot == 'dead'
    local name = 'task:' .. user .. ':' .. id
    if told ~= STATE_IN[spot] and (told or STATE_IN[spot] ~= 'queued') then
      wrong('wrong-state', name, (told or 'nothing is') .. ' told, it is in ' .. spot, function()
        return restore_state(user, id, spot)
      end)
    end
    if not is_dead and call('EXISTS', result_key(user, id)) == 1 then
      wrong('stale-result', 'result:' .. user .. ':' .. id, 'the task has not ended', function()
        delete(user, id, result_key(user, id))
        return 'deleted'
      end)
    end
    check_expiry(user, id, is_dead)
    if spot == 'held' then check_held(user, id, known) end
    if known.unique and not is_dead then check_key(user, id, known) end
    if known.expires and not is_dead and not lane_of(spot) then check_expiring(user, id, known) end
    if lane_of(spot) then check_limited(user, id, known) end
    if spot == 'deferred' and call('EXISTS', needs_key(user, id)) == 0 then
      wrong('waits-for-nothing', 'needs:' .. user .. ':' .. id, 'nothing is known of what it waits for')
    end
  end

  -- A deferred task of which only its message says what it waits for: those that have ended are found by the next look.
  function checks.rewire(user, id, ...)
    if call('EXISTS', needs_key(user, id)) == 1 or not holds('deferred', user, id) then return end
    local dependencies = { ... }
    wrong('waits-for-nothing', 'needs:' .. user .. ':' .. id, 'nothing is known of what it waits for', function()
      call('HDEL', task_key(user, id), 'waits')
      for _, dependency in ipairs(dependencies) do
        call('SADD', needs_key(user, id), dependency)
        depend().link(user, id, dependency)
      end
      if #dependencies > 0 then return 'waits for what its message says' end
      call('SREM', place_key('deferred', user), id)
      return queue_again(user, id, fields_of(user, id))
    end)
  end

  -- A message that is there.
  function checks.task(user, id)
    if call('EXISTS', body_key(user, id)) == 0 then return end
    local known = fields_of(user, id)
    local places = places_with(user, id, known)
    if #places == 0 then
      check_no_place(user, id, known)
    elseif #places > 1 then
      check_many_places(user, id, known, places)
    else
      check_one_place(user, id, known, places[1])
    end
  end

  -- One that is to run together with others, and has not begun.
  local function check_group(user, id)
    local known = call('HMGET', task_key(user, id), 'collect', 'attempt', 'enqueued')
    local group = known[1]
    if not group or known[2] or not collecting().lacks(user, id, group, tonumber(known[3] or 0)) then return end
    wrong('lost-group', 'collected:' .. user .. ':' .. group, id .. ' would run without those that it is to run with', function()
      collecting().add(user, id, group)
      return 'runs with them'
    end)
  end

  -- A task in a place.
  function checks.seat(user, id, spot)
    if spot == 'scheduled' and holds(spot, user, id) then check_group(user, id) end
    if not holds(spot, user, id) or call('EXISTS', body_key(user, id)) == 1 then return end
    wrong('lost-message', spot .. ':' .. user, 'the message of the task is gone', function()
      remove_from(spot, user, id, fields_of(user, id))
      return give_up(user, id)
    end)
  end

  -- A dead letter, from either list. Those that are over are dropped by the next failure.
  function checks.letter(user, id)
    local own, of_all = call('ZSCORE', place_key('dead', user), id), call('ZSCORE', prefix .. 'dead', user .. ':' .. id)
    local at = own or of_all
    if not at or at + dead_letter_ttl_ms <= now then return end
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('lost-message', 'dead:' .. user, 'the message of the dead letter is gone', function()
        unlist_dead(user, id)
        delete(user, id, keys_of_task(user, id))
        return 'no dead letter any more'
      end)
    end
    if call('HEXISTS', task_key(user, id), 'linked') == 1 and not depend().lapses(user, id) then
      wrong('unlisted-end', 'lapsing:' .. user, 'a dead letter that others depend on, or that uses others, would not be given up', function()
        depend().lapse_at(user, id, at + dead_letter_ttl_ms)
        return 'listed'
      end)
    end
    local known = call('HMGET', task_key(user, id), 'dead_kind', 'dead_apart')
    local kind = known[1] or ''
    local lacks = kind ~= '' and (not call('ZSCORE', letters_key(user, kind), id) and user
      or not known[2] and not call('ZSCORE', letters_key('*', kind), user .. ':' .. id) and '*')
    if lacks then
      wrong('half-a-letter', letters_name(lacks, kind), 'the dead letter is not among those of its kind', function()
        list_kind_again(user, id, at)
        return 'listed'
      end)
    end
    if own and of_all then return end
    wrong('half-a-letter', own and 'dead' or 'dead:' .. user, 'the dead letter is in one list only', function()
      return relist(user, id, { ended = at })
    end)
  end

  -- Of a list by kind. `whose`: the user, or `*`.
  function checks.of_kind(user, id, kind, whose)
    local member = whose == '*' and user .. ':' .. id or id
    local at = call('ZSCORE', letters_key(whose, kind), member)
    if not at or at + dead_letter_ttl_ms <= now or call('ZSCORE', place_key('dead', user), id) then return end
    wrong('half-a-letter', letters_name(whose, kind), 'listed by its kind, and no dead letter', function()
      take_from(whose, kind, member)
      return 'removed'
    end)
  end

  function checks.kind_listed(whose, _, kind)
    local last = call('ZRANGE', letters_key(whose, kind), -1, -1, 'WITHSCORES')[2]
    if not last or call('ZSCORE', kinds_key(whose), kind) then return end
    wrong('half-a-letter', 'dead-kinds:' .. whose, 'the kind is not listed', function()
      call('ZADD', kinds_key(whose), last, kind)
      call('PEXPIRE', kinds_key(whose), dead_letter_ttl_ms)
      return 'listed'
    end)
  end

  -- What is kept of a task beside its message.
  function checks.leftover(user, id, kind)
    local name = kind .. ':' .. user .. ':' .. id
    if call('EXISTS', prefix .. name) == 0 or call('EXISTS', body_key(user, id)) == 1 then return end
    if kind == 'task' then
      local known = fields_of(user, id)
      if known.linked and next(known, next(known)) == nil then return end -- others depend on it
      if #places_with(user, id, known) > 0 then return end -- told of there
    end
    wrong('leftover', name, 'the message of the task is gone', function()
      local linked = kind == 'task' and call('HGET', task_key(user, id), 'linked')
      delete(user, id, prefix .. name)
      if linked then call('HSET', task_key(user, id), 'linked', linked) end
      return 'deleted'
    end)
  end

  -- What a task has yielded goes with its result.
  function checks.chunks(user, id)
    local key = chunks_key(user, id)
    if call('PTTL', key) ~= -1 or call('EXISTS', body_key(user, id)) == 1 then return end
    wrong('leftover', 'chunks:' .. user .. ':' .. id, 'its task has ended', function()
      delete(user, id, key)
      return 'deleted'
    end)
  end

  -- What a dead letter keeps for another life goes with it.
  local function call_back_late(user, id)
    if call('PTTL', ends_key(user, id)) >= 0 then
      if bytes then bytes.change_ends(user, id, -1) end
      call('DEL', ends_key(user, id))
      return 'deleted'
    end
    if call('EXISTS', result_key(user, id)) == 0 then give_up(user, id) end
    announce(user, id, LETTERS[call('GETRANGE', result_key(user, id), 9, 9)] or 'canceled', true)
    depend().call_back(priority_step_ms * 1000, dead_letter_ttl_ms)
    return 'its callbacks are put in'
  end

  -- What is kept for the end of a task.
  function checks.ends(user, id)
    if call('EXISTS', ends_key(user, id)) == 0 then return end
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('leftover', 'ends:' .. user .. ':' .. id, 'the task has ended', function() return call_back_late(user, id) end)
    end
    local marks = call('HMGET', task_key(user, id), 'linked', 'ends')
    if marks[1] and marks[2] then return end
    wrong('unmarked', 'task:' .. user .. ':' .. id, 'its callbacks would not be put in', function()
      endings().mark(user, id)
      return 'marked'
    end)
  end

  local function restore_fields(lane, user, stream_id, id)
    local pending = redis.pcall('XPENDING', stream_key(lane, user), 'workers', stream_id, stream_id, 1)[1]
    local ms = string.match(stream_id, '^%d+')
    call('HSET', task_key(user, id), 'state', 'started', 'lane', lane, 'score', ms * 1000, 'stream_id', stream_id, 'worker',
      pending and pending[2] or '', 'started', ms)
    call('HSETNX', task_key(user, id), 'attempt', 1)
    return 'told anew, as its first attempt'
  end

  local function check_fields(lane, user, stream_id, id)
    local known = fields_of(user, id)
    if known.stream_id == stream_id and known.state == 'started' then return true end
    local name = 'task:' .. user .. ':' .. id
    if not known.state and #places_with(user, id, known) == 1 then
      wrong('lost-fields', name, 'the task runs, and nothing is known of it', function()
        return restore_fields(lane, user, stream_id, id)
      end)
      return true
    end
    wrong('stale-delivery', lane .. '-stream:' .. user, 'the task is elsewhere', function()
      remove_delivery(lane, user, stream_id)
      count('started', -1)
      return 'removed'
    end)
  end

  -- An entry of a stream.
  function checks.delivery(user, id, lane, stream_id)
    local stream = stream_key(lane, user)
    if delivery(lane, user, stream_id) ~= id then return end
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('lost-message', lane .. '-stream:' .. user, 'the message of the task is gone', function()
        local known = fields_of(user, id)
        remove_delivery(lane, user, stream_id)
        count('started', -1)
        if known.limited then new_limits().stop(known.limited, user, id) end
        return give_up(user, id)
      end)
    end
    if not check_fields(lane, user, stream_id, id) then return end
    local pending = redis.pcall('XPENDING', stream, 'workers', stream_id, stream_id, 1)
    if not pending.err and pending[1] then return end
    wrong('nobodys-delivery', lane .. '-stream:' .. user, 'no worker has the task, and none may steal it', function()
      redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0')
      call('XCLAIM', stream, 'workers', call('HGET', task_key(user, id), 'worker') or 'doctor', 0, stream_id, 'FORCE', 'JUSTID')
      call('ZADD', leases_key, now, lane .. ':' .. user)
      return 'in the hands of its worker again'
    end)
  end
end

-- lib/check_users.lua
-- Users: who has tasks stands where they are served from, and nobody else does.

-- lib/check_bytes.lua
-- Counts of bytes: whoever has a limit has one of what is there. What a count says is not compared with all that is there,
-- which is in no list.

-- lib/weighing.lua
-- A user has a limit of its bytes from now on: what is there already is counted, some keys at each claim. Until then only
-- what came since is in its count.
-- weighing-spaces  list  <u>:<namespace> with values that are still to be counted
-- In the state: weighing, the counts that are under way; weigh_cursor, how far they are among all keys, 'end' when past
-- them; space_cursor, the same among the values of the first namespace.

local function new_weighing()
  local it = {}
  local counted = bytes or new_bytes()
  local KEYS_A_CALL, VALUES_A_CALL = 200, 10
  local spaces_key = prefix .. 'weighing-spaces'

  local function begin(gen)
    local before = call('HGET', state_key, 'weighing')
    call('HSET', state_key, 'weighing', before and before .. ' ' .. gen or gen, 'weigh_cursor', '0')
    call('HDEL', state_key, 'space_cursor')
    call('DEL', spaces_key)
  end

  -- All that it has is counted.
  function it.recount(user)
    counted.forget(user)
    if not new_bytes().limit(user) then return end
    local gen = string.format('%d', now_us)
    call('HSET', prefix .. 'bytes:' .. user, 'gen', gen)
    call('ZADD', users_key, 'NX', now, user)
    begin(gen)
  end

  -- The limit of `whose` came, or went: the limit of everybody may be left.
  function it.change_limit(whose, is_set)
    local gen = string.format('%d', now_us)
    count('byte_limits', is_set and 1 or -1)
    if whose == '*' then
      if not is_set then return end
      call('HSET', state_key, 'byte_gen', gen)
    else
      return it.recount(whose)
    end
    begin(gen)
  end

  local look = {}

  local function look_at(user, part, key, size)
    if size > 0 then counted.discover(user, part, size, counted.expiry_of(key)) end
  end

  local function look_at_task(rest, at)
    local user, id = string.match(rest, '^([^:]*):(.*)$')
    if not counted.is_counting(user) then return end
    local part = counted.parts_of(user, id)[at]
    look_at(user, part[1], part[2], part[3])
  end
  function look.body(rest) look_at_task(rest, 1) end
  function look.errors(rest) look_at_task(rest, 2) end
  function look.result(rest) look_at_task(rest, 3) end
  function look.chunks(rest) look_at_task(rest, 4) end

  function look.ends(rest)
    local user, id = string.match(rest, '^([^:]*):(.*)$')
    local key = ends_key(user, id)
    if counted.is_counting(user) then look_at(user, 'ends:' .. id, key, call('STRLEN', key)) end
  end

  function look.batch(rest)
    local user, batch = string.match(rest, '^([^:]*):(.*)$')
    local key = prefix .. 'batch:' .. rest
    if not counted.is_counting(user) then return end
    look_at(user, 'batch:' .. batch, key, call('HSTRLEN', key, 'on_complete') + call('HSTRLEN', key, 'on_success'))
  end

  function look.xcom(rest)
    if counted.is_counting(string.match(rest, '^[^:]*')) then call('RPUSH', spaces_key, rest) end
  end

  function look.schedule(rest)
    local key = prefix .. 'schedule:' .. rest
    local user = call('HGET', key, 'user')
    if user and counted.is_counting(user) then look_at(user, 'schedule:' .. rest, key, counted.size_of_schedule(rest)) end
  end

  local function count_values(space)
    local user, namespace = string.match(space, '^([^:]*):(.*)$')
    local cursor = call('HGET', state_key, 'space_cursor') or '0'
    local page = call('HSCAN', prefix .. 'xcom:' .. space, cursor, 'COUNT', VALUES_A_CALL)
    for at = 1, #page[2], 2 do
      local key, value = page[2][at], page[2][at + 1]
      if counted.is_counting(user) then counted.discover_value(user, namespace, key, #key + #value) end
    end
    if page[1] ~= '0' then return call('HSET', state_key, 'space_cursor', page[1]) end
    call('LPOP', spaces_key)
    call('HDEL', state_key, 'space_cursor')
  end

  local function look_at_some(cursor)
    local literal = string.gsub(prefix, '[*?%[%]\\^-]', '\\%0')
    local page = call('SCAN', cursor, 'MATCH', literal .. '*', 'COUNT', KEYS_A_CALL)
    for _, key in ipairs(page[2]) do
      local kind, rest = string.match(string.sub(key, #prefix + 1), '^(%a+):(.*)$')
      if kind and look[kind] then look[kind](rest) end
    end
    call('HSET', state_key, 'weigh_cursor', page[1] == '0' and 'end' or page[1])
  end

  -- True: there is more.
  function it.go_on()
    local space, cursor = call('LINDEX', spaces_key, 0), call('HGET', state_key, 'weigh_cursor') or '0'
    if space then
      count_values(space)
    elseif cursor ~= 'end' then
      look_at_some(cursor)
    else
      call('HDEL', state_key, 'weighing', 'weigh_cursor')
      call('UNLINK', prefix .. 'weighed')
      return false
    end
    return true
  end

  return it
end

local function add_byte_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong
  local MOST_POLICIES = 200 -- read in one call

  local function weigh_anew(user)
    new_weighing().change_limit(user, true)
    count('byte_limits', -1) -- it had that limit before
    return 'counted anew by the claims that follow'
  end

  -- `all`: tasks that it has.
  function checks.bytes(user, _, all)
    if not bytes or is_weighing or not bytes.limit(user) then return end
    local kept = prefix .. 'bytes:' .. user
    local lacks = all > 0 and call('EXISTS', kept) == 0 and 'bytes:'
      or call('HLEN', kept) > 2 and call('EXISTS', prefix .. 'bytes-expiring:' .. user) == 0 and 'bytes-expiring:'
      or call('EXISTS', prefix .. 'xcom-spaces:' .. user) == 1 and call('EXISTS', prefix .. 'xcom-bytes:' .. user) == 0
        and 'xcom-bytes:'
    if not lacks then return end
    wrong('lost-count', lacks .. user, 'its limit of bytes would be counted wrongly', function() return weigh_anew(user) end)
  end

  local function has_limit(whose)
    local packed = call('GET', prefix .. 'policy:' .. whose)
    return packed and cmsgpack.unpack(packed).max_bytes
  end

  -- How many policies have such a limit, where there are not too many to look.
  function checks.byte_limits()
    if call('ZCARD', prefix .. 'policy-users') > MOST_POLICIES then return end
    local limits = has_limit('*') and 1 or 0
    for _, user in ipairs(call('ZRANGE', prefix .. 'policy-users', 0, -1)) do
      if has_limit(user) then limits = limits + 1 end
    end
    local told = call('HGET', state_key, 'byte_limits')
    if tonumber(told or 0) == limits then return end
    wrong('wrong-total', 'state', 'byte_limits says ' .. (told or 'nothing') .. ', there are ' .. limits, function()
      call('HSET', state_key, 'byte_limits', limits)
      return 'counted anew'
    end)
  end
end

-- lib/moves.lua
-- Users on their way from one partition to another, and whoever sees to it that they arrive.
-- moves         zset  user → ms from which on another may see to it: its mover was heard of 10 s before
-- departing     hash  user → '<partition> <epoch> <token>': it lives there from now on; what is here of it is erased
-- manifest:<u>  list  keys without their prefix, the first to be erased last: where it leaves what it has, where it arrives
--                     what has come so far
-- In the state: moves, 1 while there are some.
local departing_key
local manifest_key
local moves_key
do

local MOVER_MS = 10000
function manifest_key(user) return prefix .. 'manifest:' .. user end

-- Its mover lives.
local function note_mover(user)
  call('ZADD', moves_key, now + MOVER_MS, user)
  call('HSET', state_key, 'moves', 1)
end

local function end_move(user)
  call('DEL', manifest_key(user))
  call('ZREM', moves_key, user)
  if call('EXISTS', moves_key) == 0 then call('HDEL', state_key, 'moves') end
end

-- It does not stand still here any more.
local function stand_no_more(user)
  call('DEL', prefix .. 'frozen:' .. user)
  call('ZREM', prefix .. 'damaged', user)
  call('HDEL', prefix .. 'damage', user)
  if call('EXISTS', prefix .. 'damaged') == 0 then call('HDEL', state_key, 'damaged') end
end
calls[#calls + 1] = function()
  moves_key, departing_key = prefix .. 'moves', prefix .. 'departing'
  return NEXT
end
end

local function add_user_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong
  local SORTED = { 'critical', 'normal', 'held', 'scheduled', 'dead' }

  local function tasks_of(user)
    local has, all = {}, 0
    for _, spot in ipairs(SORTED) do has[spot] = call('ZCARD', place_key(spot, user)) end
    has.deferred = call('SCARD', place_key('deferred', user))
    for _, lane in ipairs({ 'critical', 'normal' }) do has[lane .. '-stream'] = call('XLEN', stream_key(lane, user)) end
    for _, number in pairs(has) do all = all + number end
    return has, all
  end

  local function check_listed(user, all)
    if all == 0 or call('ZSCORE', users_key, user) then return end
    wrong('unlisted-user', 'users', 'has tasks, and is not listed', function()
      call('ZADD', users_key, now, user)
      return 'listed'
    end)
  end

  -- The first of what it has in a place, by moments, is looked at in time. too_late, idle: kinds of findings.
  local function check_first(user, spot, list, has, too_late, idle)
    local all, first = prefix .. list, call('ZRANGE', place_key(spot, user), 0, 0, 'WITHSCORES')[2]
    local at = call('ZSCORE', all, user)
    if not first then
      if not at then return end
      return wrong(idle, list, 'has no ' .. has, function()
        call('ZREM', all, user)
        return 'removed'
      end)
    end
    if not at and call('ZSCORE', prefix .. 'damaged', user) then return end -- lib/damage.lua
    first = math.floor(first)
    if at and tonumber(at) <= math.max(first, now) then return end
    wrong(too_late, list, at and 'is looked at too late' or 'nobody looks for its ' .. has .. 's', function()
      call('ZADD', all, first, user)
      wake(user, 1)
      return 'looked at in time'
    end)
  end

  local function check_group(user, lane)
    for _, group in ipairs(call('XINFO', 'GROUPS', stream_key(lane, user))) do
      if group[2] == 'workers' then return end
    end
    wrong('no-group', lane .. '-stream:' .. user, 'its group is gone: nothing can be delivered or settled', function()
      call('XGROUP', 'CREATE', stream_key(lane, user), 'workers', '0')
      return 'made anew'
    end)
  end

  local function check_lease(user, lane, running)
    local member = lane .. ':' .. user
    local look, exists = call('ZSCORE', leases_key, member), call('EXISTS', stream_key(lane, user)) == 1
    if exists and running > 0 then
      check_group(user, lane)
      if look then return end
      return wrong('no-lease', 'leases', 'nobody looks for silent workers in ' .. member, function()
        call('ZADD', leases_key, now, member)
        return 'looked at from now on'
      end)
    end
    if not (look or exists) then return end
    wrong('lease-without-tasks', exists and lane .. '-stream:' .. user or 'leases', 'nothing runs in ' .. member, function()
      call('DEL', stream_key(lane, user))
      call('ZREM', leases_key, member)
      return 'removed'
    end)
  end

  local function put_where_it_belongs(user)
    local may_run
    if governed then
      may_run = governed.review(user)
    else
      local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
      may_run = admit(user, cost_of_task(user, id))
    end
    if may_run then wake(user, 1) end
    return 'put where it belongs'
  end

  -- Who has tasks and is not ready is held back by its policy, and comes back: at its moment, or by an event.
  local function check_held_back(u)
    local user = u.name
    local parked = governed and tonumber(call('ZSCORE', prefix .. 'parked', user) or nil)
    if parked and parked <= now then return end
    if call('ZSCORE', prefix .. 'damaged', user) then return end -- lib/damage.lua
    if governed and (sweep_asked or call('ZSCORE', prefix .. 'swept', user)) then return end
    local gate = gate_of(user)
    if not gate then
      return wrong('not-ready', 'ready', 'has tasks that may run, and is not served', function()
        return put_where_it_belongs(user)
      end)
    end
    local p = u.policy
    local waits_for_event = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
    if gate == gates.NEVER and waits_for_event and not u.is_by_share or parked and parked <= gate + 1 then return end
    wrong('not-parked', 'parked', 'is held back, and does not come back in time', function()
      return put_where_it_belongs(user)
    end)
  end

  local function check_reserved(u, tag)
    local reserved = governed and tonumber(call('ZSCORE', prefix .. 'reserved', u.name) or nil)
    if not reserved or reserved == tag then return end
    wrong('wrong-reservation', 'reserved', tag and 'has another tag' or 'is not ready', function()
      if tag then call('ZADD', prefix .. 'reserved', tag, u.name) else call('ZREM', prefix .. 'reserved', u.name) end
      return tag and 'has its tag' or 'removed'
    end)
  end

  local function check_parked(user)
    if not call('ZSCORE', prefix .. 'parked', user) then return end
    wrong('parked-without-tasks', 'parked', 'has no task that is held back', function()
      call('ZREM', prefix .. 'parked', user)
      return 'removed'
    end)
  end

  -- The weight that was counted must not be forgotten while the user stands in line.
  local function check_remembered(u, tag)
    if not tag or call('HEXISTS', user_key(u.name), 'weight') == 0 or call('PTTL', user_key(u.name)) == -1 then return end
    wrong('expires', 'user:' .. u.name, 'the weight of one that is ready would be forgotten', function()
      call('PERSIST', user_key(u.name))
      return 'stays'
    end)
  end

  -- The tree of an assignment has each of its users that is ready, with a tag that is not above the true one.
  local function check_tree(u, tag, name)
    local in_tree = tonumber(call('ZSCORE', assignments.tree_key(name, u.up), u.name) or nil)
    if in_tree and in_tree <= tag then return end
    wrong('not-in-tree', 'ready@' .. name, in_tree and 'stands too high' or 'is ready, and its workers do not see it', function()
      nodes.known[u.name] = nil
      call('ZADD', assignments.tree_key(name, u.up), 'LT', tag, u.name)
      assignments.enter(nodes.user(u.name))
      return 'in its tree'
    end)
  end

  local function check_looks(u, name)
    for _, lane in ipairs({ 'critical', 'normal' }) do
      local member = lane .. ':' .. u.name
      local look = tonumber(call('ZSCORE', leases_key, member) or nil)
      local in_list = look and tonumber(call('ZSCORE', prefix .. 'leases@' .. name, member) or nil)
      if look and not (in_list and in_list <= look) then
        wrong('no-lease', 'leases@' .. name, 'its workers do not look for silent ones in ' .. member, function()
          call('ZADD', prefix .. 'leases@' .. name, 'LT', look, member)
          return 'looked at from now on'
        end)
      end
    end
  end

  local function check_assigned(u, tag)
    for _, name in ipairs(call('SMEMBERS', prefix .. 'assignments:' .. u.name)) do
      if call('ZSCORE', prefix .. 'assignments', name) then
        if tag then check_tree(u, tag, name) end
        check_looks(u, name)
      end
    end
  end

  function checks.user(user)
    nodes.known[user] = nil
    local has, all = tasks_of(user)
    check_listed(user, all)
    check_first(user, 'scheduled', 'due', 'scheduled task', 'not-due', 'due-without-tasks')
    check_first(user, 'expiring', 'expiring', 'task that expires', 'not-due', 'due-without-tasks')
    check_first(user, 'lapsing', 'lapsing', 'dead letter with links', 'unlisted-end', 'unlisted-end')
    check_lease(user, 'critical', has['critical-stream'])
    check_lease(user, 'normal', has['normal-stream'])
    local u, waits = nodes.user(user), has.critical + has.normal
    local tag = tonumber(call('ZSCORE', u.up.key, user) or nil)
    if waits > 0 and not tag then check_held_back(u) end
    if waits == 0 and tag then
      wrong('ready-without-tasks', 'ready', 'has no task that may run', function()
        retire(user)
        return 'not ready any more'
      end)
    end
    check_reserved(u, tag)
    check_remembered(u, tag)
    if waits + has.held == 0 then check_parked(user) end
    if has_assigned then check_assigned(u, tag) end
    checks.bytes(user, '', all)
  end

  -- Who lives in another partition is not listed here, and whoever looks here is told so.
  function checks.moved(_, _, user)
    if not has_moved then
      wrong('unmarked', 'state', 'users have moved, and scripts do not know it', function()
        call('HSET', state_key, 'moved', 1)
        return 'marked'
      end)
    end
    if call('ZSCORE', users_key, user) and not is_frozen(user) then
      wrong('two-homes', 'moved', user .. ' lives here, and whoever looks here is sent on')
    end
  end

  -- Who comes from another partition, or has left for one, has somebody who sees to it: lib/moves.lua. What is still noted as
  -- to be erased, and has no end, is of one that has left.
  function checks.on_its_way(_, _, user)
    local leaves = call('HEXISTS', departing_key, user) == 1
    local lives = not leaves and not is_frozen(user) and moved_to(user)
    if lives and call('PTTL', manifest_key(user)) == -1 then
      return wrong('forsaken-move', 'departing', user .. ' has left, and what it has left is not erased', function()
        call('HSET', departing_key, user, lives .. ' repair')
        call('ZADD', moves_key, now, user)
        call('HSET', state_key, 'moves', 1)
        return 'goes on'
      end)
    end
    if not leaves and call('HGET', frozen_key(user), 'why') ~= 'arrive' then return end
    if call('ZSCORE', moves_key, user) and call('HEXISTS', state_key, 'moves') == 1 then return end
    wrong('forsaken-move', 'moves', user .. ' is on its way, and nobody goes on with it', function()
      call('ZADD', moves_key, 'NX', now, user)
      call('HSET', state_key, 'moves', 1)
      return 'goes on'
    end)
  end

  function checks.turns(user)
    check_first(user, 'held-keys', 'held-turns', 'key with held tasks', 'not-let-in', 'held-without-tasks')
  end

  function checks.planned(user)
    check_first(user, 'schedules', 'schedules', 'schedule', 'unlisted-schedule', 'lost-schedule')
  end

  -- A user or a group in a line.
  function checks.member(member, _, path)
    local line = path == '' and root or lines.at(path)
    local is_group = string.byte(member) == 64
    local node = is_group and lines.at(string.sub(member, 2)) or nodes.user(member)
    if node.up == line or not call('ZSCORE', line.key, member) then return end
    wrong('wrong-line', path == '' and 'ready' or 'ready:' .. path, member .. ' is of another group', function()
      lines.tag(line, member)
      lines.remove(line, member)
      return 'removed'
    end)
  end

  local function enter_again(node)
    local first, low = lines.lowest(node.up)
    nodes.enter(node, node.up.mean, first, low)
    if first then return 'ready again' end
    node.up.was_joined, node.up.is_changed = true, true
    return 'ready again'
  end

  -- A group, which is ready when one of its users is.
  function checks.group(_, _, path)
    local node = lines.at(path)
    local has, tag = call('EXISTS', node.key) == 1, call('ZSCORE', node.up.key, node.member)
    if has == (tag and true or false) then return end
    wrong(has and 'not-ready' or 'ready-without-tasks', 'ready', 'group ' .. path, function()
      if has then return enter_again(node) end
      lines.keep(node.up, node.member, tonumber(tag))
      lines.tag(node.up, node.member)
      lines.remove(node.up, node.member)
      return 'not ready any more'
    end)
  end

  -- A user and an assignment, as one of the two says. Those of one that ended are released by steps.
  function checks.assigned(user, _, name)
    local lists = call('SISMEMBER', prefix .. 'assignment:' .. name, user) == 1
    local knows = call('SISMEMBER', prefix .. 'assignments:' .. user, name) == 1
    if lists == knows then return end
    local lives = call('ZSCORE', prefix .. 'assignments', name)
    wrong('half-an-assignment', lists and 'assignments:' .. user or 'assignment:' .. name, name .. ' and ' .. user, function()
      local verb = lives and 'SADD' or 'SREM'
      call(verb, prefix .. 'assignment:' .. name, user)
      call(verb, prefix .. 'assignments:' .. user, name)
      return lives and 'in both' or 'in neither'
    end)
  end
end

-- lib/check_links.lua
-- What depends on what: `uses` and `feeds` mirror each other, who waits for a task that has ended is told, and its result
-- stays while somebody depends on it.

local function add_link_checks(doctor, dead_letter_ttl_ms)
  local checks, wrong = doctor.checks, doctor.wrong
  local turns_key = prefix .. 'announcements'
  local LETTERS = { F = 'finished', X = 'failed', C = 'canceled' }
  local function line_of(user) return turns_key .. ':' .. user end

  local function outcome_of(user, id)
    local letter = call('GETRANGE', result_key(user, id), 9, 9)
    if LETTERS[letter] then return LETTERS[letter] end
    return call('HGET', task_key(user, id), 'state') == 'failed' and 'failed' or nil
  end

  local function tell_anew(user, dependency, outcome)
    call('RPUSH', line_of(user), cmsgpack.pack({ dependency, outcome }))
    call('ZADD', turns_key, 'NX', now_us, user)
    count('announcements', 1)
    return 'told by the claims that follow'
  end

  -- Of a pair that mirrors each other.
  local function check_told(user, id, dependency, on_failure)
    if call('EXISTS', line_of(user)) == 1 then return end
    local outcome = outcome_of(user, dependency)
    if not outcome or depend().verdict(on_failure, outcome) == 'wait' then return end
    wrong('untold-end', 'feeds:' .. user .. ':' .. dependency, 'it has ' .. outcome .. ', and ' .. id .. ' waits', function()
      return tell_anew(user, dependency, outcome)
    end)
  end

  local function drop_feed(user, id, dependency)
    wrong('fed-for-nothing', 'feeds:' .. user .. ':' .. dependency, id .. ' does not wait for it', function()
      call('SREM', feeds_key(user, dependency), id)
      call('SREM', informed_key(user, dependency), id)
      return 'removed'
    end)
  end

  local function mend_link(user, id, dependency, is_used, waits)
    local name = is_used and 'feeds:' .. user .. ':' .. dependency or 'uses:' .. user .. ':' .. id
    wrong('half-a-link', name, id .. ' depends on ' .. dependency .. ', as one of the two says', function()
      if waits then call('SADD', needs_key(user, id), dependency) end
      depend().link(user, id, dependency)
      return 'in both'
    end)
  end

  -- `id` depends on `dependency`, as one of three says.
  function checks.link(user, id, dependency)
    local is_needed = call('SISMEMBER', needs_key(user, id), dependency) == 1
    local is_used = call('SISMEMBER', uses_key(user, id), dependency) == 1
    local is_fed = call('SISMEMBER', feeds_key(user, dependency), id) + call('SISMEMBER', informed_key(user, dependency), id) > 0
    if not is_needed and not is_used and not is_fed then return end
    if not is_needed and call('EXISTS', line_of(user)) == 1 then return end -- of what has ended, links are still to go
    if call('EXISTS', body_key(user, id)) == 0 and call('SISMEMBER', place_key('deferred', user), id) == 0 then
      if is_fed and not depend().lapses(user, id) then drop_feed(user, id, dependency) end
      return -- what it uses and needs is told as a leftover
    end
    local known = call('HMGET', task_key(user, id), 'state', 'on_failure')
    local waits = known[1] == 'deferred' or call('SISMEMBER', place_key('deferred', user), id) == 1
    if is_needed and not waits then is_needed = false end -- told as a leftover
    if not is_needed and not is_used and not is_fed then return end
    if not is_used or not is_fed then return mend_link(user, id, dependency, is_used, is_needed) end
    if is_needed then check_told(user, id, dependency, known[2] or 'wait') end
  end

  -- `needs` of a task that waits for nothing.
  function checks.needs(user, id)
    if call('EXISTS', needs_key(user, id)) == 0 then return end
    if call('HGET', task_key(user, id), 'state') == 'deferred' then return end
    if call('SISMEMBER', place_key('deferred', user), id) == 1 then return end
    wrong('leftover', 'needs:' .. user .. ':' .. id, 'the task waits for nothing', function()
      call('DEL', needs_key(user, id))
      return 'deleted'
    end)
  end

  -- `uses` of a task that has ended.
  function checks.uses(user, id)
    if call('EXISTS', uses_key(user, id)) == 0 or call('EXISTS', body_key(user, id), line_of(user)) > 0 then return end
    if call('SISMEMBER', place_key('deferred', user), id) == 1 then return end
    if depend().lapses(user, id) then return end
    wrong('leftover', 'uses:' .. user .. ':' .. id, 'the task has ended', function()
      depend().forget(user, id)
      return 'let go'
    end)
  end

  -- A result stays while others depend on it, and no longer.
  function checks.result(user, id)
    local ttl, letter = call('PTTL', result_key(user, id)), call('GETRANGE', result_key(user, id), 9, 9)
    if ttl == -2 or call('EXISTS', line_of(user)) == 1 then return end
    local is_fed = call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0
    local name = 'result:' .. user .. ':' .. id
    if ttl == -1 and not (is_fed and letter == 'F') then
      wrong('no-expiry', name, 'stays for ever', function()
        call('PEXPIRE', result_key(user, id), dead_letter_ttl_ms)
        return 'expires in ' .. string.format('%d', dead_letter_ttl_ms / 1000) .. ' s'
      end)
    elseif ttl >= 0 and is_fed and letter == 'F' then
      wrong('expires', name, 'vanishes in ' .. string.format('%d', ttl) .. ' ms, and others depend on it', function()
        depend().keep_result(user, id)
        return 'stays'
      end)
    end
  end

  -- What is given up as a dead letter is one.
  function checks.lapsing(user, id)
    if not depend().lapses(user, id) or call('EXISTS', body_key(user, id)) == 0 then return end
    if call('HGET', task_key(user, id), 'state') == 'failed' then return end
    wrong('leftover', 'lapsing:' .. user, id .. ' is no dead letter', function()
      take_moment(prefix .. 'lapsing', place_key('lapsing', user), user, id)
      return 'removed'
    end)
  end

  -- The marks of a task that others depend on.
  function checks.fed(user, id)
    if call('EXISTS', line_of(user)) == 1 then return end
    local name = user .. ':' .. id
    local feeds, informed = call('EXISTS', feeds_key(user, id)) == 1, call('EXISTS', informed_key(user, id)) == 1
    if informed then
      wrong('leftover', 'informed:' .. name, 'nobody is being told', function()
        call('SUNIONSTORE', feeds_key(user, id), feeds_key(user, id), informed_key(user, id))
        call('DEL', informed_key(user, id))
        return 'joined with feeds'
      end)
    end
    if (feeds or informed) and call('HEXISTS', task_key(user, id), 'linked') == 0 then
      wrong('unmarked', 'task:' .. name, 'others depend on it, and its end would not be told', function()
        call('HSET', task_key(user, id), 'linked', 1)
        return 'marked'
      end)
    end
  end

  -- Ends of a user's tasks that are told later.
  function checks.announcing(user)
    local is_listed, packed = call('ZSCORE', turns_key, user), call('LINDEX', line_of(user), 0)
    if packed then
      local ok, oldest = pcall(cmsgpack.unpack, packed)
      if not ok or type(oldest) ~= 'table' or type(oldest[2]) ~= 'string' then
        return wrong('corrupt', 'announcements:' .. user, 'cannot be read', function()
          call('LPOP', line_of(user))
          count('announcements', -1)
          return 'dropped'
        end)
      end
    end
    if (is_listed and true or false) == (packed and true or false) then return end
    if packed and call('ZSCORE', prefix .. 'damaged', user) then return end -- lib/damage.lua
    wrong('unlisted-end', 'announcements', 'the user ' .. (packed and 'is missing' or 'has nothing to be told'), function()
      if packed then call('ZADD', turns_key, now_us, user) else call('ZREM', turns_key, user) end
      return packed and 'listed' or 'removed'
    end)
  end
end

-- lib/check_names.lua
-- What governs: policies and limits, and what they hold, each in the lists that lead to it.

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

-- lib/check_schedules.lua
-- Schedules: each is in the lists that its state says, and each list leads to one.

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
local broken_key
local declared_key
local ended_key
local fire_at
local fire_no_more
local forget_schedule
local index_key
local read_schedule
local schedules_of
do

local schedules_key
local function schedule_key(id) return prefix .. 'schedule:' .. id end
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
local function weigh_schedule(user, id, sign)
  if bytes then bytes.change_schedule(user, id, sign) end
end

-- It fires no more, and is forgotten `keep` ms from now.
local function end_schedule(user, id, keep)
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

local function add_schedule_checks(doctor, dead_letter_ttl_ms)
  local checks, wrong = doctor.checks, doctor.wrong

  local function list(id, key, name, at, detail)
    wrong('unlisted-schedule', name, detail, function()
      call('ZADD', key, at, id)
      return 'listed'
    end)
  end

  local function unlist(id, key, name, detail)
    wrong('wrong-list', name, detail, function()
      call('ZREM', key, id)
      return 'removed'
    end)
  end

  local function check_firing(user, id, state, slot)
    local next_at, name = call('ZSCORE', schedules_of(user), id), 'schedules:' .. user
    if state == 'active' and not next_at then
      wrong('unlisted-schedule', name, 'would never fire', function()
        fire_at(user, id, slot or now)
        return 'listed'
      end)
    elseif state ~= 'active' and next_at then
      wrong('wrong-list', name, 'fires, and is ' .. state, function()
        fire_no_more(user, id)
        return 'removed'
      end)
    end
  end

  local function check_ended(id, state)
    local ended_at = call('ZSCORE', ended_key, id)
    if state == 'ended' and not ended_at then
      list(id, ended_key, 'schedules-ended', string.format('%d', now + dead_letter_ttl_ms), 'would never be forgotten')
    end
    if state ~= 'ended' and ended_at then unlist(id, ended_key, 'schedules-ended', 'is to be forgotten, and ' .. state) end
  end

  -- What it does is lost with it. One that code declares comes back with the next declaration.
  local function forget(user, id, name, detail)
    wrong('lost-schedule', name, detail, function()
      if user ~= '' then fire_no_more(user, id) end
      for _, key in ipairs({ ended_key, broken_key, declared_key }) do call('ZREM', key, id) end
      return 'removed from the lists: add it anew'
    end)
  end

  -- `user`: in whose list it is, or ''.
  function checks.schedule(user, _, id)
    local known = read_schedule(id, 'user', 'state', 'slot', 'revision', 'spec', 'body', 'anchor', 'priority')
    if not known[1] and not known[2] then
      for _, name in ipairs({ 'schedules:' .. user, 'schedules-ended', 'schedules-broken', 'declared' }) do
        if call('ZSCORE', prefix .. name, id) then
          return forget(user, id, 'schedule:' .. id, 'is in ' .. name .. ', and gone')
        end
      end
      return
    end
    if not (known[1] and known[2] and known[4] and known[5] and known[6] and tonumber(known[7]) and tonumber(known[8])) then
      return wrong('corrupt', 'schedule:' .. id, 'lacks what it is made of', function()
        forget_schedule(id)
        return 'removed: add it anew'
      end)
    end
    if user ~= '' and known[1] ~= user and call('ZSCORE', schedules_of(user), id) then
      wrong('wrong-list', 'schedules:' .. user, id .. ' has another owner', function()
        fire_no_more(user, id)
        return 'removed'
      end)
    end
    check_firing(known[1], id, known[2], known[3])
    check_ended(id, known[2])
    if call('ZSCORE', broken_key, id) then unlist(id, broken_key, 'schedules-broken', 'was set aside, and can be read') end
    if call('ZSCORE', index_key, known[1] .. ':' .. id) then return end
    wrong('unlisted-schedule', 'schedule-index', 'is in no listing', function()
      call('ZADD', index_key, 0, known[1] .. ':' .. id)
      return 'listed'
    end)
  end

  -- A member of the index.
  function checks.indexed(user, _, id)
    local owner, member = read_schedule(id, 'user')[1], user .. ':' .. id
    if owner == user or not call('ZSCORE', index_key, member) then return end
    wrong('lost-schedule', 'schedule-index', member .. (owner and ' has another owner' or ' is gone'), function()
      call('ZREM', index_key, member)
      return owner and 'removed' or 'removed from the lists: add it anew'
    end)
  end
end

-- lib/check_values.lua
-- What is kept beside the tasks: values that tasks share, and what is measured.

local function add_value_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong

  local function names(user, space)
    local of = user .. ':' .. space
    return 'xcom:' .. of, 'xcom-expiry:' .. of, 'xcom-spaces:' .. user
  end

  -- One value, from either key.
  function checks.value(user, _, space, key)
    local values, expiries = names(user, space)
    local value, expiry = call('HGET', prefix .. values, key), call('ZSCORE', prefix .. expiries, key)
    if (value and true or false) == (expiry and true or false) then return end
    wrong('half-a-value', value and expiries or values, 'the value ' .. key .. (value and ' never goes' or ' is gone'), function()
      if value and #value >= 8 then
        call('ZADD', prefix .. expiries, struct.unpack('>d', value), key)
        call('PEXPIREAT', prefix .. expiries, string.format('%d', call('PEXPIRETIME', prefix .. values)))
        return 'expires again'
      end
      call('ZREM', prefix .. expiries, key)
      call('HDEL', prefix .. values, key)
      return 'removed'
    end)
  end

  -- A namespace, from its values or from the list of its user. One that has expired is removed with the next value.
  function checks.space(user, _, space)
    local values, _, spaces = names(user, space)
    local at = call('ZSCORE', prefix .. spaces, space)
    if call('EXISTS', prefix .. values) == 1 and not at then
      wrong('unlisted-space', spaces, 'a purge would not find ' .. space, function()
        local ends = string.format('%d', call('PEXPIRETIME', prefix .. values))
        call('ZADD', prefix .. spaces, ends, space)
        if call('PEXPIRETIME', prefix .. spaces) < tonumber(ends) then call('PEXPIREAT', prefix .. spaces, ends) end
        return 'listed'
      end)
    end
  end

  local function is_measured(packed)
    local ok, m = pcall(cmsgpack.unpack, packed)
    if not ok or type(m) ~= 'table' or #m < WAITS - 1 then return false end
    for _, number in ipairs(m) do
      if type(number) ~= 'number' then return false end
    end
    return true
  end

  function checks.metrics(user)
    local packed = call('GET', prefix .. 'metrics:' .. user)
    if not packed or is_measured(packed) then return end
    wrong('corrupt', 'metrics:' .. user, 'cannot be read', function() return set_aside('metrics:' .. user) end)
  end

  function checks.run_time(_, _, name)
    local took = call('HGET', prefix .. 'run-times', name)
    if not took or string.match(took, '^%d+ [%d.e+-]+$') then return end
    wrong('corrupt', 'run-times', 'of ' .. name .. ' cannot be read', function()
      call('HDEL', prefix .. 'run-times', name)
      return 'measured anew'
    end)
  end
end

-- lib/check_batches.lua
-- Batches: each task of one that has not ended is in its set, and is known to be of it; an open one is looked at when nobody
-- closes it; one that is over has said so.

local function add_batch_checks(doctor, step_us)
  local checks, wrong = doctor.checks, doctor.wrong
  local LETTERS = { F = 'finished', X = 'failed', C = 'canceled' }
  local function batches() return endings().batches() end

  local function is_listed(user, batch) return call('ZSCORE', prefix .. 'batches:' .. user, batch) and true or false end

  local function check_lost(user, batch)
    if call('EXISTS', batches().tasks_key(user, batch)) == 0 and not is_listed(user, batch) then return end
    wrong('leftover', 'batch-tasks:' .. user .. ':' .. batch, 'the batch is gone', function()
      batches().forget(user, batch)
      return 'deleted'
    end)
  end

  function checks.batch(user, batch)
    local state = batches().state(user, batch)
    if not state then return check_lost(user, batch) end
    if (state == 'open') ~= is_listed(user, batch) then
      wrong('unlisted-end', 'batches:' .. user, batch .. ' is ' .. state, function()
        batches().list(user, batch, state)
        return state == 'open' and 'listed' or 'removed'
      end)
    end
    if batches().is_over_untold(user, batch) then
      wrong('untold-end', 'batch:' .. user .. ':' .. batch, 'all of its tasks have ended', function()
        wake(user, batches().complete_if_over(user, batch, step_us))
        return 'its callbacks are put in'
      end)
    end
  end

  -- A user of whom some are open.
  function checks.batches(user)
    local first = call('ZRANGE', prefix .. 'batches:' .. user, 0, 0, 'WITHSCORES')[2]
    local at = call('ZSCORE', prefix .. 'batches', user)
    if (first and true or false) == (at and true or false) then return end
    wrong('unlisted-end', 'batches', 'the user ' .. (first and 'is missing' or 'has no open batch'), function()
      if first then call('ZADD', prefix .. 'batches', first, user) else call('ZREM', prefix .. 'batches', user) end
      return first and 'listed' or 'removed'
    end)
  end

  -- A task in the set of a batch.
  function checks.counted(user, id, batch)
    if call('SISMEMBER', batches().tasks_key(user, batch), id) == 0 or not batches().state(user, batch) then return end
    local name = user .. ':' .. id
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('leftover', 'batch-tasks:' .. user .. ':' .. batch, id .. ' has ended', function()
        local outcome = LETTERS[call('GETRANGE', result_key(user, id), 9, 9)] or 'canceled'
        wake(user, batches().note_end(user, batch, id, outcome, step_us))
        return 'counted'
      end)
    end
    if call('EXISTS', ends_key(user, id)) == 1 then return end
    wrong('unmarked', 'ends:' .. name, 'its batch would not hear of its end', function()
      endings().keep(user, id, endings().pack({}, batch))
      return 'marked'
    end)
  end

  -- A task that lives, by what is kept for its end.
  function checks.of_batch(user, id)
    local packed = call('GET', ends_key(user, id))
    local ok, kept = pcall(cmsgpack.unpack, packed or '')
    local batch = packed and ok and type(kept) == 'table' and kept[3] or ''
    if batch == '' or call('EXISTS', body_key(user, id)) == 0 or not batches().state(user, batch) then return end
    if call('HGET', task_key(user, id), 'state') == 'failed' then return end
    if call('SISMEMBER', batches().tasks_key(user, batch), id) == 1 then return end
    wrong('unmarked', 'batch-tasks:' .. user .. ':' .. batch, id .. ' has not ended, and would not be waited for', function()
      call('SADD', batches().tasks_key(user, batch), id)
      return 'marked'
    end)
  end
end

-- lib/check_state.lua
-- What the queue keeps of itself: numbers that can be counted anew.

-- lib/version.lua
-- What tells that nothing in a queue has moved: of all that the totals count, something changes with each script.

local function version_of_state()
  local fields = call('HMGET', state_key, 'arrival', 'clock', 'critical', 'normal', 'started', 'scheduled', 'deferred',
    'announcements', 'finished', 'failed', 'canceled', 'retried', 'in_hand')
  for at = 1, 13 do fields[at] = fields[at] or '' end
  return table.concat(fields, ' ')
end

local function add_state_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong

  local function is_finite(text)
    local number = tonumber(text or 0)
    return number and number == number and math.abs(number) < math.huge
  end

  local function begin_anew()
    root.clock, root.mean, arrival = tonumber(call('ZRANGE', ready_key, 0, 0, 'WITHSCORES')[2] or 0), 0, now_us
  end

  -- The script writes them back at its end.
  local function check_clock()
    if is_finite(of_queue.clock) and is_finite(of_queue.arrival) and is_finite(of_queue.mean) then return end
    wrong('bad-number', 'state', 'the clock of the queue is no number', function()
      begin_anew()
      return 'as the lowest tag'
    end)
  end

  local function check_total(field, told, counted)
    if tonumber(told or 0) == counted then return end
    local text = 'says ' .. (told or 'nothing') .. ', there are ' .. string.format('%d', counted)
    wrong('wrong-total', 'state', field .. ' ' .. text, function()
      call('HSET', state_key, field, counted)
      of_queue[field] = counted -- to which the script adds at its end
      return 'counted anew'
    end)
  end

  -- Totals of what is listed as a whole. `is_used`: there are users.
  function checks.state(_, _, is_used)
    if not of_queue.arrival then -- what workers tell of themselves may be there again
      if not is_used and call('EXISTS', prefix .. 'settings') == 0 then return end
      return wrong('lost-state', 'state', 'clock, totals, and whether there are policies and limits', function()
        begin_anew()
        return 'begun anew: what can be counted is'
      end)
    end
    check_clock()
    local policies = call('ZCARD', prefix .. 'policy-users') + call('ZCARD', prefix .. 'policy-groups') +
      call('EXISTS', prefix .. 'policy:*')
    if has_policies or policies > 0 then check_total('policies', has_policies, policies) end
    local assigned = call('ZCARD', prefix .. 'assignments') - (call('ZSCORE', prefix .. 'assignments', '*') and 1 or 0)
    if has_assigned or assigned > 0 then check_total('assigned', has_assigned, assigned) end
    local limits = call('ZCARD', prefix .. 'limit-keys')
    if has_limits or limits > 0 then check_total('limits', has_limits, limits) end
    if call('EXISTS', prefix .. 'expiring') == 1 and not has_expiring then
      wrong('bad-number', 'state', 'tasks that expire are not looked for', function()
        call('HSET', state_key, 'expiring', 1)
        return 'looked for from now on'
      end)
    end
    if call('EXISTS', prefix .. 'swept') == 1 and call('HEXISTS', state_key, 'sweep') == 0 then
      wrong('bad-number', 'state', 'those who are to be looked at anew are not', function()
        call('HSET', state_key, 'sweep', 1)
        return 'looked at by the claims that follow'
      end)
    end
  end

  -- Those that were counted over all users (totals.lua), if nothing has moved since: `version` tells.
  function checks.totals(_, _, version, counted)
    if version_of_state() ~= version then return end
    for field, number in pairs(counted) do check_total(field, call('HGET', state_key, field), number) end
  end
end

local function check_items(request, repairs)
  local dead_letter_ttl_ms, priority_step_ms, items = request[1], request[2], request[3]
  local doctor = new_doctor(repairs)
  add_key_checks(doctor, dead_letter_ttl_ms)
  add_task_checks(doctor, dead_letter_ttl_ms, priority_step_ms)
  add_byte_checks(doctor)
  add_batch_checks(doctor, priority_step_ms * 1000)
  add_user_checks(doctor)
  add_link_checks(doctor, dead_letter_ttl_ms)
  add_name_checks(doctor)
  add_schedule_checks(doctor, dead_letter_ttl_ms)
  add_value_checks(doctor)
  add_state_checks(doctor)
  return doctor.look_at(items)
end
-- ARGV[1] is the msgpack of Check: dead_letter_ttl_ms: int, priority_step_ms: int, items: Sequence[Sequence[Any]]
--   items: which check, the user and the id that it is about or '', then what the check needs; see lib/doctor.lua.
local args
local dead_letter_ttl_ms, priority_step_ms, items
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  dead_letter_ttl_ms, priority_step_ms, items = args[1], args[2], args[3]
  return check_items(args, false)
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

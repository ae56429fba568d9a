#!lua
-- Promote what is due, steal from silent workers, then serve fairly.
-- KEYS[1]  state
-- Returns  {when what it hands out begins: now, or where that is told again, then; ms for which the worker may sleep, -1
--          for ever, -2: the lists of its assignments are to be sent, or -3: what governs all users was changed elsewhere, then per delivery: user, id, lane, stream id, attempt, score, history, body}. history: '' at the first delivery, else 'failures lost returned returned-since queued canceling'
--          body: '' where there is one too many: it is to be put back
-- Cost     O(wanted log users), plus O(1) per promoted and stolen task, both bounded
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

-- lib/claim.lua
-- Promote what is due, steal from silent workers, then serve fairly. `claim` is a `Claim`; returns the reply of claim.lua.
-- What was handed out before something failed is handed over; the next call tells what is wrong.

-- lib/depend.lua
-- Dependencies. `uses` of a task holds what it depends on, `feeds` of a task those that depend on it and have not ended: the
-- two mirror each other. `needs` holds what a deferred task still waits for. While somebody is in `feeds` of a task, its
-- result has no time to live, so that what a living task is given by others lives as long as it does. A dead letter may be
-- requeued, and counts as living.
-- A task in either has the field `linked`, so that the others pay nothing at their end. Of a result that is kept for others
-- it is the time to live, in ms, that begins when the last of them has ended; else it is 1.

-- lib/task.lua
-- What goes when a task goes.

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

-- lib/canceled.lua
-- Outcomes that others wait for, passed on at the end of the script (lib/depend.lua).

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

-- lib/metrics.lua
-- Measures users; what a script measured is written by its save_state().

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

-- lib/expiry.lua
-- Tasks that begin by a moment, or not at all.
-- expiring:<u>  zset  those of a user that have not begun → ms by which they must
-- expiring      zset  user → ms of its first one, or of its last turn where it has more that is due: as `due` has it of
--                     what is scheduled
-- `expiring` in the state tells that there are some, `expires` of a task the ms by which it must begin.

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

-- lib/fair.lua
-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996), and its doors. What they change is written
-- by save_state().

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

-- lib/expired.lua
-- The end of tasks that have not begun in time.

-- By turns of users. Records are kept for `keep_ms`. A call that does this passes on what comes of it.
local function expire_due(keep_ms)
  local ENDS, LOOKS = 100, 20 -- of one call: tasks, and users

  local function expire_of(user, most)
    for _, id in ipairs(call('ZRANGEBYSCORE', place_key('expiring', user), '-inf', now, 'LIMIT', 0, most)) do
      cancel_task(user, id, 'expired', keep_ms)
      deadlines.forget(user, id)
    end
    deadlines.had_its_turn(user)
  end

  local users = deadlines.due(LOOKS)
  for _, user in ipairs(users) do
    local is_done, failure = pcall(expire_of, user, math.floor(ENDS / #users))
    if not is_done then
      damage().note(user, failure)
      deadlines.pass_over(user)
    end
  end
end

-- lib/sweep.lua
-- The policy of everybody changed, slots were added, or workers that serve everybody came back. Who is ready is looked at
-- when its turn comes; those who are held back with tasks, and those in line, some at each claim.
-- swept        zset  those of `parked` that are looked at anew
-- sweep-lines  list  '<cursor> <path>' of the lines whose members are still to be looked at

local function new_sweep()
  local it = {}
  local parked_key, swept_key, sweep_key = prefix .. 'parked', prefix .. 'swept', prefix .. 'sweep-lines'
  local SWEPT = 100 -- users per claim

  function it.begin()
    if call('EXISTS', swept_key) == 1 then return call('HSET', state_key, 'sweep', 'again') end
    call('HSET', state_key, 'sweep', 1)
    if call('EXISTS', parked_key) == 1 then call('RENAME', parked_key, swept_key) end
  end

  local function park_pause(ends_at)
    call('ZADD', parked_key, ends_at, '*')
    note_moment(ends_at)
  end

  function it.change_default(was_paused, is_reweighted)
    it.begin()
    if is_reweighted and lines.lowest(root) then
      call('DEL', sweep_key)
      call('RPUSH', sweep_key, '0 ')
    end
    call('ZREM', parked_key, '*')
    if governed.all_paused and governed.all_paused ~= true then park_pause(governed.all_paused) end
    if was_paused and not governed.all_paused then tell_all_workers() end
  end

  function it.tell_a_worker()
    if wake_from(prefix .. 'waiting', 1) > 0 then tell_all_workers() end -- none that serves everyone is idle
  end

  local function look_at_some(woken)
    local found = call('ZPOPMIN', swept_key, SWEPT)
    for at = 1, #found, 2 do
      local user = found[at]
      if user == '*' then
        if governed.all_paused == tonumber(found[at + 1]) then park_pause(governed.all_paused) end
      elseif governed.review_alone(user) then
        woken[user] = 1
      end
    end
    return call('EXISTS', swept_key) == 1
  end

  local function look_at_member(member)
    local is_group = string.byte(member) == 64
    local node = is_group and lines.at(string.sub(member, 2)) or nodes.user(member)
    if is_group then call('RPUSH', sweep_key, '0 ' .. node.path) end
    if has_returned then assignments.raise(node) end
    if is_group or not governed then return end
    nodes.reweight(node)
    reservations.update(node)
  end

  local function go_through_lines()
    local left = SWEPT
    while left > 0 do
      local cursor, path = string.match(call('LPOP', sweep_key) or '', '^(%d+) (.*)$')
      if not cursor then return false end
      local line = path == '' and root or lines.at(path)
      lines.flush(line)
      local page = call('ZSCAN', line.key, cursor, 'COUNT', left)
      if page[1] ~= '0' then call('LPUSH', sweep_key, page[1] .. ' ' .. path) end
      for at = 1, #page[2], 2 do
        local is_done, failure = pcall(look_at_member, page[2][at])
        if not is_done then damage().note(page[2][at], failure) end
      end
      left = left - #page[2] / 2 - 1
    end
    return call('EXISTS', sweep_key) == 1
  end

  -- True: there are more.
  function it.go_on(asked, woken)
    local has_more, is_cut = governed and look_at_some(woken), go_through_lines()
    if has_more or is_cut then return true end
    if has_returned then call('HDEL', state_key, 'returning') end
    has_returned = nil
    if asked == 'again' then
      it.begin()
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
local FIRST_SERVED
local new_work
do

FIRST_SERVED = 3 -- place of the first delivery in the reply; each has eight values
local MOST_BYTES = 1048576 -- of bodies; the last one may be longer

-- groups: the assignments served, first to last; '*' is everyone. served: the reply. bytes: of the bodies in it.
-- promoted: user → tasks that came back to its lanes. moved: steps that delivered nothing. alone: what it took is to run
-- beside nothing else. follows: the places in the reply at which a delivery begins that runs with the one before.
function new_work(claim)
  local want, groups = claim[2], claim[10]
  local served = { now, 0 }
  local it = { groups = groups, everyone = false, served = served, delivered = 0, bytes = 0, promoted = {}, moved = 0,
    is_swept = false, alone = false, is_weighing = false, follows = {} }
  for _, name in ipairs(groups) do it.everyone = it.everyone or name == '*' end

  function it.has_room_for_bytes() return it.bytes < MOST_BYTES end

  function it.has_room() return it.delivered < want and it.bytes < MOST_BYTES end

  -- One too many goes without its body, which a repeated call and a steal may have: the worker puts it back.
  -- `follows`: it comes beside what is wanted, as it runs with the one before it.
  function it.note(user, id, lane, stream_id, attempt, score, history, body, follows)
    local n, bytes_before, delivered = #served, it.bytes, it.delivered
    if follows then
      it.follows[n + 1] = true
    else
      if delivered >= want or bytes_before >= MOST_BYTES then body = '' end
      it.delivered = delivered + 1
    end
    it.bytes = bytes_before + #body
    served[n + 1] = user
    served[n + 2] = id
    served[n + 3] = lane
    served[n + 4] = stream_id
    served[n + 5] = attempt
    served[n + 6] = score
    served[n + 7] = history
    served[n + 8] = body
  end

  -- sleep: ms for which the worker may. between: of a queue with partitions, see lib/between.lua.
  function it.reply(sleep, between)
    served[2] = sleep
    if between then served[#served + 1] = between.sight() end
    return served
  end

  return it
end
end

-- lib/promotion.lua
-- What is due comes to its lane.

local function new_promotion(claim, work)
  local worker, want, priority_step_ms = claim[1], claim[2], claim[5]
  local it = {}
  local step_us = priority_step_ms * 1000
  local PROMOTIONS, LOOKS = 200, 20
  local SPARE = 10 -- of one user beyond what is wanted: other workers find something, too

  -- done: those that are in their lanes.
  local function promote(user, most, done)
    local waiting = place_key('scheduled', user)
    local ids = call('ZRANGEBYSCORE', waiting, '-inf', '(' .. now + 1, 'LIMIT', 0, most)
    for _, id in ipairs(ids) do
      local key = task_key(user, id)
      local known = call('HMGET', key, 'lane', 'score', 'priority', 'watched')
      local lane, score = known[1], known[2]
      if not score then lane, score = score_of(tonumber(known[3] or 3), step_us) end
      call('HSET', key, 'state', 'queued', 'queued', now)
      place(user, id, lane, score)
      done[#done + 1] = id
      if known[4] then publish(user, id, 'waiting') end
    end
    if #ids > 0 then
      call('ZREM', waiting, unpack(ids))
      count('scheduled', -#ids)
      work.promoted[user] = (work.promoted[user] or 0) + #ids
    end
    local at = end_turn(due_key, waiting, user)
    if at then note_moment(at, user) end
  end

  -- By turns of users.
  function it.promote_due()
    local users = call('ZRANGEBYSCORE', due_key, '-inf', now, 'LIMIT', 0, LOOKS)
    local most = math.min(want + SPARE, math.floor(PROMOTIONS / #users))
    for _, user in ipairs(users) do
      local done = {}
      local is_done, failure = pcall(promote, user, most, done)
      if not is_done then damage().leave_scheduled(user, done, failure) end
    end
  end

  -- What was promoted or let in again, and not taken by this call, is news for other workers.
  function it.announce()
    if governed and governed.all_paused then return end
    local function tell(user, tasks)
      if nodes.is_ready(nodes.user(user)) then wake(user, tasks, worker) end
    end
    for user, tasks in pairs(work.promoted) do
      local is_done, failure = pcall(tell, user, tasks)
      if not is_done then damage().note(user, failure) end
    end
  end

  return it
end

-- lib/stealing.lua
-- Look for what silent workers have, and when to look again.

-- lib/suspects.lua
-- Tasks that were in a process when it died run again apart from each other: which of them killed it is not known.
-- suspects  zset  <u>:<id> of those that were handed out less than a lease ago → when that is over
local may_run_suspects
local new_room
local suspects_key
local suspects_open_at
local watch_suspect
do


local are_none

function watch_suspect(user, id, lease_ms)
  are_none = false
  call('ZADD', suspects_key, now + lease_ms, user .. ':' .. id)
end

function may_run_suspects()
  are_none = are_none or call('EXISTS', suspects_key) == 0
  if are_none then return true end
  call('ZREMRANGEBYSCORE', suspects_key, '-inf', now)
  local slots = tonumber(call('HGET', state_key, 'slots') or 0)
  return call('ZCARD', suspects_key) < math.max(1, math.floor(slots / 10))
end

-- When one more may run at the latest; 0: now.
function suspects_open_at()
  if may_run_suspects() then return 0 end
  return tonumber(call('ZRANGE', suspects_key, 0, 0, 'WITHSCORES')[2])
end

-- One that died as the only suspect runs in a worker that runs nothing else for a time: an idle one, or one that takes
-- nothing new until it is empty. One worker of all does so at a time, and for a tenth of the time of all at most: tasks that
-- kill must not take the workers of everybody. `clearing` in the state: since when and until when a worker is occupied by
-- that, when the next one may be, the lane for which it is to become empty ('-': it runs), and its name.
function new_room(worker, holds)
  local it = {}
  local PATIENCE_MS = 30000 -- for running tasks to end
  local SIGN_MS = 20000 -- within which a live worker gives one
  local since, ends_at, opens_at, lane, owner = string.match(clearing_known, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
  since, ends_at, opens_at = tonumber(since or 0), tonumber(ends_at or 0), tonumber(opens_at or 0)
  local is_awaited = lane and lane ~= '-' and ends_at > now
  local is_own = owner == worker

  local function note(from, to, of_lane)
    local workers = math.max(1, call('ZCOUNT', prefix .. 'workers', now - SIGN_MS, '+inf'))
    since, ends_at, lane, is_own, is_awaited = from, to, of_lane, true, of_lane ~= '-'
    opens_at = to + math.ceil((to - from) * math.max(0, 10 / workers - 1))
    call('HSET', state_key, 'clearing', string.format('%d %d %d ', since, ends_at, opens_at) .. lane .. ' ' .. worker)
  end

  -- The lane for which this worker is empty now.
  function it.lane() return is_awaited and is_own and holds == 0 and lane end

  -- Whether one may run alone here: nobody does or did just now, or a busy worker is still waited for.
  function it.is_open() return holds == 0 and (is_awaited or opens_at <= now) end

  -- One runs alone here, for so long at most.
  function it.take(ms) note(is_awaited and is_own and since or now, now + ms, '-') end

  -- It has ended.
  function it.close()
    if is_own and lane == '-' and ends_at > now then note(since, now, '-') end
  end

  -- `wanted`: the lane, if this call saw one that waits for room.
  function it.ask(wanted)
    if is_awaited and is_own and holds == 0 then
      call('HDEL', state_key, 'clearing') -- it has gone
      is_awaited = false
    elseif wanted and holds > 0 and opens_at <= now then
      note(now, now + PATIENCE_MS, wanted)
    end
  end

  function it.is_awaited() return is_awaited and is_own and holds > 0 end

  function it.ends_at() return ends_at end

  function it.opens_at() return is_awaited and ends_at or opens_at end

  return it
end
calls[#calls + 1] = function()
  suspects_key = prefix .. 'suspects'
  are_none = false -- as far as this call has seen
  return NEXT
end
end

-- lib/hunt.lua
-- Whoever had something and gave no sign of life for a lease may be dead. Then each lane is looked at once; while all are
-- alive, nobody looks at what they have, but now and then.
-- `hunt` in the state: when the last lease ended of those found silent so far: lanes that were looked at before are looked
-- at again. Negative when all have been.

local QUIET_LEASES = 30 -- between two looks at a lane while all workers live
local hunt_from

local function begin_hunt(at)
  if at <= math.abs(hunt_from) then return end
  hunt_from = at
  call('HSET', state_key, 'hunt', at)
end

local function end_hunt()
  hunt_from = -hunt_from
  call('HSET', state_key, 'hunt', hunt_from)
end
calls[#calls + 1] = function()
  hunt_from = tonumber(hunt_known or 0)
  return NEXT
end

-- lib/silence.lua
-- Who fell silent. `silent_at` in the state: nobody can have been silent for a lease before. `checked_at`: when that was found.

-- lib/claimed.lua
-- What a worker was handed by its last call, should it ask again as the reply was cut: the number of that call, a space,
-- and user and id of each; without the user, what runs with the one before it.

-- lib/history.lua
-- What a delivery tells of what came before it.

-- `known`: fields of its task. Zeros where it has none, as texts: a number is formatted each time anew. `follows`: it runs with the delivery before it.
local function history_of(known, lost, alone, follows)
  return string.format('%s %s %s %s %s %s %s %s %s %s', known.failures or '0', lost or '0', known.returned or '0',
    known.since or '0', known.queued or '0', known.canceling and '1' or '0', known.deaths or '0', alone or '0',
    known.snoozed or '0', follows and '1' or '0')
end

-- A body that cannot be handed out is told of as such.
local function load_body(user, id, max_message_bytes)
  local body = redis.pcall('GET', body_key(user, id))
  if type(body) == 'table' then return '\0not a string' end
  if body == '' then return '\0truncated: 0 bytes' end
  if body and #body > max_message_bytes then
    return '\0too large: ' .. #body .. ' bytes, the limit is ' .. string.format('%d', max_message_bytes)
  end
  return body
end
local came_too_late
local claim_again
local fields_of
local keep_claimed
local number_claimed
do

local CLAIMED_TTL = 60000
local function claimed_key(worker) return prefix .. 'claimed:' .. worker end

-- The number of the last call that handed it something, or that was repeated.
function number_claimed(worker)
  local kept = redis.pcall('GETRANGE', claimed_key(worker), 0, 16)
  return type(kept) == 'string' and tonumber(string.match(kept, '^%d+')) or 0
end

-- A call that the worker gave up, and that arrives after its repetition was answered: nobody would know what it was handed.
function came_too_late(claim)
  local worker, number, repeats, rested = claim[1], claim[14], claim[15], claim[22]
  local last = number > 0 and number_claimed(worker) or 0
  return number < last or (number == last and number > 0 and not (repeats or rested))
end

function fields_of(flat)
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields
end

function keep_claimed(claim, work)
  local worker, number, repeats = claim[1], claim[14], claim[15]
  if number == 0 or (work.delivered == 0 and not repeats) then return end
  local kept, served, n = {}, work.served, 0
  for at = FIRST_SERVED, #served, 8 do
    kept[n + 1] = work.follows[at] and '' or served[at]
    kept[n + 2] = served[at + 1]
    n = n + 2
  end
  call('SET', claimed_key(worker), string.format('%d ', number) .. cmsgpack.pack(kept), 'PX', CLAIMED_TTL)
end

-- The deliveries of the first try, as far as they are still this worker's: those beyond what it wants now go without
-- their bodies, and it puts them back. False: there was no first try, or it came to nothing.
function claim_again(claim, work)
  local worker, max_message_bytes, number = claim[1], claim[4], claim[14]
  if number_claimed(worker) ~= number then return false end
  local kept = cmsgpack.unpack(string.match(call('GET', claimed_key(worker)), ' (.*)'))
  local user, has_first, fits
  for at = 1, #kept, 2 do
    local id = kept[at + 1]
    if kept[at] ~= '' then user, has_first = kept[at], false end
    local known = fields_of(call('HGETALL', task_key(user, id)))
    local body = known.worker == worker and known.stream_id ~= '' and load_body(user, id, max_message_bytes)
    if body then
      call('XCLAIM', stream_key(known.lane, user), 'workers', worker, 0, known.stream_id, 'JUSTID')
      work.served[1] = tonumber(known.started) or now -- all of them began with the first try
      if not has_first then fits = work.has_room() end
      work.note(user, id, known.lane, known.stream_id, attempt_in(known.attempt), known.score,
        history_of(known, known.lost, known.alone, has_first), fits and body or '', has_first)
      has_first = true
    end
  end
  return true
end
end

-- lib/set_back.lua
-- The clock of the server was set back: what was noted lies in a future that is far away by now. What silent workers
-- have is looked for as if all had given a sign just now; what is scheduled for a moment waits for it.
-- `set_back` in the state: how far the lanes have been gone through; 'lists' when all have been.

local function new_set_back(lease_ms)
  local it = {}
  local LANES, KEPT_BACK = 100, 1000 -- of one call

  -- Each delivery is its worker's, whose lease begins anew. All of a lane at once: no more than there are slots.
  local function renew_lane(stream)
    local from = '-'
    repeat
      local page = call('XPENDING', stream, 'workers', from, '+', 500)
      for _, entry in ipairs(page) do
        call('XCLAIM', stream, 'workers', entry[2], 0, entry[1], 'JUSTID')
        from = '(' .. entry[1]
      end
    until #page < 500
  end

  local function go_through_lanes(cursor)
    local page = call('ZSCAN', leases_key, cursor, 'COUNT', LANES)
    for at = 1, #page[2], 2 do
      local lane, user = string.match(page[2][at], '^(%a+):(.*)$')
      local is_done, failure = pcall(renew_lane, stream_key(lane, user))
      if not is_done then damage().note(user, failure) end
      call('ZADD', leases_key, now + lease_ms, page[2][at])
      if has_assigned then assignments.note_lease(page[2][at], user, now + lease_ms) end
    end
    call('HSET', state_key, 'set_back', page[1] == '0' and 'lists' or page[1])
    return page[1] == '0'
  end

  -- False: there are more.
  local function bring_back(key)
    local far = call('ZRANGEBYSCORE', key, '(' .. now, '(+inf', 'LIMIT', 0, KEPT_BACK)
    for _, member in ipairs(far) do call('ZADD', key, now, member) end
    return #far < KEPT_BACK
  end

  local function bring_lists_back()
    for _, name in ipairs({ 'workers', 'assignments', 'damaged', 'held' }) do
      if not bring_back(prefix .. name) then return false end
    end
    return true
  end

  -- True: all of it is done.
  function it.go_on()
    local cursor = call('HGET', state_key, 'set_back') or '0'
    if cursor ~= 'lists' and not go_through_lanes(cursor) then return false end
    if not bring_lists_back() then return false end
    call('DEL', prefix .. 'suspects')
    call('HDEL', state_key, 'set_back', 'clearing', 'hunt', 'keeper', 'second')
    return true
  end

  return it
end
local new_silence
local silent_at
do

local SET_BACK_MS = 1000 -- more than a clock is adjusted by in passing

function new_silence(lease_ms, step_us)
  local it = {}
  local LOOKS = 20

  -- An idle worker gives a sign more rarely. What it said last is that it has nothing, and it knew what its last claim got.
  local function has_nothing(worker, sign)
    local known = call('HMGET', prefix .. 'worker:' .. worker, 'seen', 'idle', 'claims')
    if known[2] ~= '1' or tonumber(known[1] or 0) < sign then return false end
    return number_claimed(worker) <= tonumber(known[3] or 0)
  end

  local function note(last_sign)
    local silent = call('ZREVRANGEBYSCORE', prefix .. 'workers', last_sign, '-inf', 'WITHSCORES', 'LIMIT', 0, LOOKS)
    for at = 1, #silent, 2 do
      if not has_nothing(silent[at], tonumber(silent[at + 1])) then return begin_hunt(silent[at + 1] + lease_ms) end
    end
  end

  local function abandon_batches()
    local woken = {}
    endings().batches().abandon(step_us, woken)
    for user, tasks in pairs(woken) do wake(user, tasks) end
  end

  function it.find()
    local checked_at = tonumber(call('HGET', state_key, 'checked_at') or 0)
    if checked_at > now + SET_BACK_MS then
      if not new_set_back(lease_ms).go_on() then return end
      hunt_from = 0
    end
    depend().give_up_lapsed()
    abandon_batches()
    local last_sign = now - lease_ms
    note(last_sign)
    local oldest = call('ZRANGEBYSCORE', prefix .. 'workers', '(' .. last_sign, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    silent_at = (oldest or now) + lease_ms
    call('HSET', state_key, 'silent_at', silent_at, 'checked_at', now)
  end

  return it
end
calls[#calls + 1] = function()
  silent_at = tonumber(silent_at_known or 0)
  return NEXT
end
end

-- lib/taking_over.lua
-- Take over what silent workers have. Whatever ran in a process that died may have killed it: each is a suspect, and runs
-- apart from the others until one of them dies alone.

-- lib/charging.lua
-- Services whose cost is their time: what they run is charged while they run, so that none is far from what it has used.
-- task:<u>:<id>  charged         what this delivery was charged so far
--                charged_before  what the task was charged for deliveries that were stolen or put back

-- lib/run_times.lua
-- How long tasks of a name ran lately.
-- run-times  name → 'number mean' in seconds; '' stands for all names. Of a thousand names at most
-- These are estimates: where the key is of another type, nothing is known, and nothing fails.

local function new_run_times()
  local it, run_times = {}, prefix .. 'run-times'
  local MEAN_OF, MOST_NAMES = 32, 1000

  -- Second: of how many it is.
  function it.mean(name)
    local known = redis.pcall('HGET', run_times, name)
    if type(known) ~= 'string' then return nil, 0 end
    local n, mean = string.match(known, '^(%S+) (%S+)$')
    return tonumber(mean), tonumber(n) or 0
  end

  -- Beyond so many names a new one takes the place of one at random: of names that nobody uses any more, sooner or later.
  local function make_room()
    if call('HLEN', run_times) < MOST_NAMES then return end
    for _, name in ipairs(call('HRANDFIELD', run_times, 2)) do
      if name ~= '' then return call('HDEL', run_times, name) end
    end
  end

  local function learn(name, runs, seconds)
    local mean, n = it.mean(name)
    if not mean then
      make_room()
      mean = seconds
    end
    n = math.min(n + runs, MEAN_OF)
    mean = mean + (seconds - mean) * math.min(1, runs / n)
    call('HSET', run_times, name, string.format('%d %.9g', n, mean))
    call('PEXPIRE', run_times, USER_TTL)
  end

  -- So many took so long each, in the mean.
  function it.learn(name, runs, seconds)
    if name ~= '' then pcall(learn, name, runs, seconds) end
    pcall(learn, '', runs, seconds)
  end

  return it
end

local function new_charging()
  local it, times = {}, new_run_times()
  local RENEWAL = 0.2 -- of a lease: the interval of worker/renewal.py
  local FIRST_ESTIMATE = 0.1

  local function estimate(name) return times.mean(name) or times.mean('') or FIRST_ESTIMATE end

  -- No more than what is known at the first renewal: a task that takes less gives no more than that back.
  function it.begin(user, id, name, cost, lease_ms)
    local charged = cost * math.min(estimate(name), RENEWAL * lease_ms / 1000)
    call('HSET', task_key(user, id), 'charged', charged)
    return charged
  end

  -- Another delivery follows, which is charged from nothing on.
  function it.interrupt(user, id, charged, before)
    if not charged then return end
    local key = task_key(user, id)
    call('HSET', key, 'charged', 0, 'charged_before', charged + (before or 0))
  end

  -- It is still running.
  function it.go_on(user, id, cost, charged, started)
    local used = cost * math.max(0, now - started) / 1000
    if used <= charged then return end
    call('HSET', task_key(user, id), 'charged', used)
    adjust(user, used - charged)
  end

  -- What the delivery cost. What did not run, as its worker died or nobody knows it, costs what it was thought to: nobody
  -- is served for nothing.
  function it.finish(user, cost, charged, run, more)
    local used = (run > 0 and cost * run / 1000 or charged) + more
    if used ~= charged then adjust(user, used - charged) end
    return used
  end

  function it.learn(user, id, seconds)
    times.learn(name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD)), 1, seconds)
  end

  return it
end

-- lib/in_group.lua
-- Streams whose group may be gone.

-- A command about the deliveries of a stream; only where its group is gone, that is made anew.
local function in_group(user, stream, command, ...)
  local reply = redis.pcall(command, stream, 'workers', ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, '^NOGROUP') then error(reply, 0) end
  damage().mend_group(stream, user)
  return call(command, stream, 'workers', ...)
end

local function new_taking_over(claim, work, room)
  local worker, lease_ms, max_message_bytes, max_deliveries, holds = claim[1], claim[3], claim[4], claim[13], claim[11]
  local it = {}
  local CANDIDATES = 20 -- silent deliveries of each lane
  local LOOK_SHARE = 0.4 -- of a lease, between two looks at a lane in which something is silent
  local OWN_LEASES = 3 -- in which the reply to a claim may be on its way
  local ROOM_MS = 200 -- between two looks at what waits for a worker that runs nothing else
  local MOST_LEASES_ALONE = 6
  local waits = nil -- a lane in which one waits for room

  -- Its entry outlived it, or another hand took the rest away.
  local function clear_away(lane, user, stream_id, id, known)
    call('XACK', stream_key(lane, user), 'workers', stream_id)
    call('XDEL', stream_key(lane, user), stream_id)
    if known.limited then limiting().stop(known.limited, user, id) end
    if known.stream_id == stream_id then call('DEL', keys_of_task(user, id)) end
    count('started', -1)
  end

  local FIELDS = { 'stream_id', 'attempt', 'score', 'failures', 'lost', 'returned', 'since', 'queued', 'worker',
    'canceling', 'limited', 'started', 'received', 'tried', 'deaths', 'alone', 'charged', 'charged_before' }
  local function read(user, id)
    local fields = {}
    for at, value in ipairs(call('HMGET', task_key(user, id), unpack(FIELDS))) do fields[FIELDS[at]] = value end
    return fields
  end

  -- What the death of its last worker says of a task: nothing of one that had not arrived, or ran there as any other.
  -- `idle`: ms since the last sign of that worker, which may have lived for as long as half a lease after it.
  local function judge(known, idle)
    known.lived = math.max(0, now - idle - (tonumber(known.started) or now)) + lease_ms / 2
    known.tried, known.deaths = tonumber(known.tried) or 0, tonumber(known.deaths) or 0
    if not known.lost or known.received ~= known.attempt then return end
    if known.lived < (tonumber(known.alone) or 0) then
      known.deaths = known.deaths + 1
    else
      known.tried = known.tried + 1
    end
  end

  -- For how long it is to run alone, in ms: for longer than it ran until its last worker died, but not for ever.
  local function time_alone(known) return math.ceil(math.min(known.lived + lease_ms, MOST_LEASES_ALONE * lease_ms)) end

  local function needs_room(known) return known.tried > 0 and known.deaths < max_deliveries end

  local function forget_consumer(stream, consumer)
    if consumer == worker then return end
    if #call('XPENDING', stream, 'workers', '-', '+', 1, consumer) == 0 then
      call('XGROUP', 'DELCONSUMER', stream, 'workers', consumer)
    end
  end

  -- The delivery is ours now; (stream id, attempt) fences off the old owner.
  local function take_over(lane, user, stream_id, id, known, body)
    local alone = needs_room(known) and time_alone(known)
    local attempt, lost = attempt_in(known.attempt) + 1, (tonumber(known.lost) or 0) + 1
    call('XAUTOCLAIM', stream_key(lane, user), 'workers', worker, lease_ms, stream_id, 'COUNT', 1, 'JUSTID')
    call('HSET', task_key(user, id), 'attempt', attempt, 'lost', lost, 'worker', worker, 'started', now_text, 'tried',
      known.tried, 'deaths', known.deaths)
    if alone then
      call('HSET', task_key(user, id), 'alone', alone)
      room.take(alone)
    else
      call('HDEL', task_key(user, id), 'alone')
    end
    if known.charged then new_charging().interrupt(user, id, known.charged, known.charged_before) end
    watch_suspect(user, id, lease_ms)
    work.note(user, id, lane, stream_id, attempt, known.score, history_of(known, lost, alone), body)
    work.alone = alone and true
  end

  -- Its own that are late are renewed by it: it may have been stopped, and goes on. What it does not renew, as it knows
  -- nothing of it, is nobody's.
  local renewed
  local function may_have(idle)
    if idle < OWN_LEASES * lease_ms then return true end
    renewed = renewed or tonumber(call('HGET', prefix .. 'worker:' .. worker, 'seen') or 0)
    return holds > 0 and renewed < now - lease_ms
  end

  -- True: this worker has it, or nobody can have it.
  local function try(lane, user, entry)
    local stream_id, consumer = entry[1], entry[2]
    if consumer == worker and may_have(entry[3]) then return false end
    local found = call('XRANGE', stream_key(lane, user), stream_id, stream_id)[1]
    local id = found and found[2][2]
    local known = id and read(user, id) or {}
    local body = known.stream_id == stream_id and load_body(user, id, max_message_bytes)
    if not body then
      clear_away(lane, user, stream_id, id or '', known)
      return true
    end
    judge(known, entry[3])
    if needs_room(known) and not (room.is_open() and work.delivered == 0) then
      waits = lane .. ':' .. user
      return false
    end
    take_over(lane, user, stream_id, id, known, body)
    forget_consumer(stream_key(lane, user), consumer)
    return true
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

  local function look_again(member, user, at)
    call('ZADD', leases_key, at, member)
    if has_assigned then assignments.note_lease(member, user, at) end
  end

  -- At most one.
  local function steal_from(member)
    local colon = string.find(member, ':', 1, true)
    local lane, user = string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
    local stream, next_look = stream_key(lane, user), now + QUIET_LEASES * lease_ms
    if call('EXISTS', stream) == 0 then return call('ZREM', leases_key, member) end
    local waits_before = waits
    waits = nil
    for _, entry in ipairs(in_group(user, stream, 'XPENDING', 'IDLE', lease_ms, '-', '+', CANDIDATES)) do
      next_look = math.min(next_look, now + math.ceil(lease_ms * LOOK_SHARE))
      if try(lane, user, entry) then next_look = now end -- behind those whose time came before now
      if work.delivered > 0 then break end
    end
    if waits then next_look = math.max(now + ROOM_MS, math.min(next_look, room.opens_at())) end
    waits = waits or waits_before
    if call('XLEN', stream) == 0 then
      call('DEL', stream)
      call('ZREM', leases_key, member)
    else
      if work.delivered == 0 then forget_consumers(stream) end
      look_again(member, user, next_look)
    end
  end

  function it.look_at(member)
    local is_done, failure = pcall(steal_from, member)
    if is_done then return end
    local user = string.match(member, ':(.*)$')
    damage().note(user, failure)
    look_again(member, user, damage().next_ms)
  end

  function it.waits() return waits end

  return it
end

local function new_stealing(claim, work)
  local worker, want, lease_ms, priority_step_ms, holds, suspects =
    claim[1], claim[2], claim[3], claim[5], claim[11], claim[12]
  local it = {}
  local LOOKS = 20 -- lanes of one call
  local room = clearing_known ~= '' and new_room(worker, holds)
  local waits = nil -- a lane in which one waits for room
  local has_seen_all = false -- at which it was time to look

  local function add_lanes(due, most, from, to)
    if work.everyone then
      for _, member in ipairs(call('ZRANGEBYSCORE', leases_key, from, to, 'LIMIT', 0, most - #due)) do due[#due + 1] = member end
      return
    end
    for _, name in ipairs(work.groups) do
      for _, member in ipairs(assignments.lanes(name, from, to, most - #due)) do due[#due + 1] = member end
    end
  end

  local function is_hunting() return hunt_from > 0 and hunt_from <= now end

  local function lanes_to_look_at()
    local due = {}
    if is_hunting() then
      add_lanes(due, LOOKS / 2, '(' .. now + lease_ms, hunt_from + QUIET_LEASES * lease_ms)
      add_lanes(due, LOOKS / 2, '(' .. now + QUIET_LEASES * lease_ms, '+inf') -- by a lease that was longer
    end
    has_seen_all = #due < LOOKS / 2
    add_lanes(due, LOOKS, '-inf', now) -- those from which something was taken are behind those that nobody has looked at
    return due
  end

  -- Of a worker's last free slot every other one, while others wait for their turn.
  local function is_turn_of_others()
    return want == 1 and of_queue.stole and call('HDEL', state_key, 'stole') == 1 and lines.lowest(root)
  end

  local function look_at(lanes)
    room = room or new_room(worker, holds)
    local taking_over = new_taking_over(claim, work, room)
    for _, member in ipairs(lanes) do
      if work.delivered > 0 then break end
      taking_over.look_at(member)
    end
    waits = taking_over.waits()
  end

  -- Of those that came less than a lease ago a process has one, and all processes together have a tenth of their slots.
  function it.steal()
    if now >= silent_at or silent_at > now + lease_ms then new_silence(lease_ms, priority_step_ms * 1000).find() end
    if suspects > 0 or not may_run_suspects() or is_turn_of_others() then return end
    local awaited = room and room.lane()
    local due = awaited and { awaited } or lanes_to_look_at()
    if due[1] then look_at(due) end
    has_seen_all = has_seen_all and work.delivered == 0
    if has_seen_all and work.everyone and is_hunting() then end_hunt() end
    if want == 1 and work.delivered == 1 then call('HSET', state_key, 'stole', 1) end
    if room then room.ask(work.delivered == 0 and waits) end
  end

  -- Nothing else is served by this call: what it took runs alone, or is to have room to.
  function it.serves_nothing_else() return work.alone or room and room.is_awaited() end

  -- When this worker has to look again.
  function it.next_look()
    if suspects > 0 then return now + lease_ms end
    local opens = suspects_open_at()
    if opens > now then return opens end
    if room and room.is_awaited() then return room.ends_at() end
    local first = math.huge
    if work.everyone then
      first = tonumber(call('ZRANGE', leases_key, 0, 0, 'WITHSCORES')[2] or first)
    else
      for _, name in ipairs(work.groups) do first = math.min(first, assignments.next_look(name)) end
    end
    if first == math.huge then return first end
    if is_hunting() and not has_seen_all then return now end
    if first > now and not waits then first = math.ceil(first / lease_ms) * lease_ms end -- many lanes, one look
    return math.min(first, silent_at)
  end

  return it
end

-- lib/serving.lua
-- Who is served, until the worker has enough.

-- lib/delivering.lua
-- One task from its lane into the hands of a worker.

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

local function new_delivering(claim, work)
  local worker, lease_ms, max_message_bytes, dead_letter_ttl_ms, fairness, priority_step_ms =
    claim[1], claim[3], claim[4], claim[6], claim[9], claim[5]
  local it = {}
  local charging = fairness == 'time' and new_charging() or nil

  -- What this call knows of the users it serves. critical, normal: how many wait there, false until the first is taken.
  local serving = {}
  function it.knowledge(user)
    local known = serving[user]
    if not known then
      known = { critical = false, normal = false, expiring = has_expiring and deadlines.concerns(user) }
      serving[user] = known
    end
    return known
  end

  -- What was popped and is not handed over: put back if something fails before it is.
  local hand = {}
  local function hold(user, lane, id, score)
    hand.user, hand.lane, hand.id, hand.score = user, lane, id, score
    hand.stream_id, hand.new_fields, hand.counts = nil, nil, nil
  end

  function it.undo()
    if hand.id then damage().put_back(hand, limited) end
    serving = {}
  end

  -- The first delivery of a lane brings a place among the leases, and a stream.
  local function begin_stream(stream, lane, user)
    local member, look = lane .. ':' .. user, now + QUIET_LEASES * lease_ms
    if call('ZADD', leases_key, 'NX', look, member) == 0 then return end
    local made = redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
    if made.err and not string.find(made.err, '^BUSYGROUP') then
      call('ZREM', leases_key, member)
      error(made, 0)
    end
    if has_assigned then assignments.note_lease(member, user, look) end
  end

  -- Into the stream, and into this worker's hands: FORCE delivers an entry that no consumer has read.
  local function append(lane, user, id, known)
    local stream = stream_key(lane, user)
    if not known[stream] then
      begin_stream(stream, lane, user)
      known[stream] = true
    end
    local stream_id = call('XADD', stream, '*', 'id', id)
    hand.stream_id = stream_id
    if redis.pcall('XCLAIM', stream, 'workers', worker, '0', stream_id, 'FORCE', 'JUSTID').err then
      in_group(user, stream, 'XCLAIM', worker, '0', stream_id, 'FORCE', 'JUSTID')
    end
    return stream_id
  end

  -- It was taken out of its lane too late to begin.
  local function expire(user, id, lane)
    count(lane, -1)
    if limited then limited.drop(user, id) end
    end_canceled(user, id, 'expired', dead_letter_ttl_ms)
    hand.id = nil
    work.moved = work.moved + 1
  end

  -- Into the hands of the worker. Returns what it costs, and whether it was let in; third: its group, where it has one.
  local function hand_over(user, id, lane, score, body, limits, known, is_over, follows)
    local key, cost, history = task_key(user, id), cost_of(body), ''
    local stream_id = append(lane, user, id, known)
    local attempt = 1 -- for which a task has no field
    local new_fields = call('HSET', key, 'state', 'started', 'lane', lane, 'score', score, 'stream_id', stream_id,
      'worker', worker, 'started', now_text)
    hand.new_fields = new_fields
    local was_let_in = limits and limited.start(limits, user, id)
    local paid, group = false, nil
    if new_fields < 6 then -- it was deferred, scheduled, retried, released, held or watched before
      local before = call('HMGET', key, 'failures', 'lost', 'returned', 'since', 'queued', 'paid', 'watched', 'charged',
        'charged_before', 'unique', 'snoozed', 'collect', 'attempt')
      if before[13] then
        attempt = call('HINCRBY', key, 'attempt', 1)
        hand.counts = true
      end
      if before[10] then pointers.begin(user, id, before[10]) end
      if before[7] then publish(user, id, 'started') end
      local told = { failures = before[1], returned = before[3], since = before[4], queued = before[5],
        snoozed = before[11] }
      history, group = history_of(told, before[2], false, follows), before[12]
      if charging then charging.interrupt(user, id, before[8], before[9]) end
      if before[6] then
        call('HDEL', key, 'paid')
        paid = not charging
      end
    end
    if charging and not paid then cost = charging.begin(user, id, name_in(body), cost, lease_ms) end
    if known.expiring and is_over == false then deadlines.forget(user, id) end
    work.note(user, id, lane, stream_id, attempt, score, history, body, follows)
    hand.id = nil
    return paid and 0 or cost, was_let_in, group
  end

  -- Those that are to run with it, wherever they wait: one service, which costs what all of them do.
  local function take_along(user, first, group, name, known)
    local total = 0
    for _, other in ipairs(collecting().others(user, first, group, name)) do
      local id, state = other[1], other[2]
      local is_over = known.expiring and deadlines.is_over(user, id)
      local body = not is_over and work.has_room_for_bytes() and load_body(user, id, max_message_bytes)
      local limits = body and limited and limited.of(user, body)
      if body and string.byte(body) == 1 and not (limits and limited.must_wait(limits, user, id)) then
        local fields = call('HMGET', task_key(user, id), 'priority', 'lane', 'score')
        local lane, score = fields[2], fields[3]
        if not score then
          lane, score = score_of(tonumber(fields[1] or 3), priority_step_ms * 1000)
          score = string.format('%.0f', score)
        end
        hold(user, lane, id, score)
        if state == 'scheduled' then
          collecting().unschedule(user, id)
        else
          for _, each in ipairs({ 'critical', 'normal' }) do
            local removed = call('ZREM', place_key(each, user), id)
            count(each, -removed)
            known[each] = known[each] - removed
          end
        end
        count('started', 1)
        total = total + hand_over(user, id, lane, score, body, limits, known, is_over, true)
      else
        collecting().leave(user, id)
      end
    end
    return total
  end

  -- The first task of the user comes into the hand, out of its lane: returns that, the id and the score. Nil: it has none.
  local function pop(user, known)
    if known.normal then
      local lane = known.critical > 0 and 'critical' or 'normal'
      local popped = call('ZPOPMIN', place_key(lane, user))
      known[lane] = known[lane] - 1
      hold(user, lane, popped[1], popped[2])
      return lane, popped[1], popped[2]
    end
    local critical, normal = place_key('critical', user), place_key('normal', user)
    local popped = call('ZMPOP', '2', critical, normal, 'MIN')
    if not popped then
      known.critical, known.normal = 0, 0
      return nil
    end
    local lane, first = popped[1] == critical and 'critical' or 'normal', popped[2][1]
    hold(user, lane, first[1], first[2])
    known.critical, known.normal = lane == 'critical' and call('ZCARD', critical) or 0, call('ZCARD', normal)
    return lane, first[1], first[2]
  end

  -- Takes the first task of the user; returns what it costs, or nil when it is gone from Redis or has to wait for a limit.
  -- Second: whether it was let in for one.
  local function deliver(user, known)
    local lane, id, score = pop(user, known)
    if not lane then
      known.is_lost = true
      return nil
    end
    local is_over = known.expiring and deadlines.is_over(user, id)
    if is_over then
      expire(user, id, lane)
      return nil
    end
    local body = load_body(user, id, max_message_bytes)
    if not body then
      count(lane, -1)
      call('DEL', keys_of_task(user, id))
      hand.id = nil
      work.moved = work.moved + 1
      return nil
    end
    local limits = limited and limited.of(user, body)
    if limits and limited.must_wait(limits, user, id) then
      limited.hold(limits, user, id, lane, score)
      hand.id = nil
      work.moved = work.moved + 1
      return nil
    end
    local cost, was_let_in, group = hand_over(user, id, lane, score, body, limits, known, is_over)
    count(lane, -1)
    if group then cost = cost + take_along(user, id, group, name_in(body), known) end
    return cost, was_let_in
  end

  -- A user that goes on with something else does not need the places that it has in hand.
  function it.start_next(user, known)
    local cost, was_let_in = deliver(user, known)
    if cost and limited and not was_let_in and limited.take_back(user) then
      known.critical, known.normal = call('ZCARD', place_key('critical', user)), call('ZCARD', place_key('normal', user))
    end
    return cost
  end

  -- Lanes were filled meanwhile.
  function it.look_anew() serving = {} end

  return it
end

local function new_serving(claim, work, between)
  local want = claim[2]
  local it, delivering = {}, new_delivering(claim, work)
  local MOVES = 200 -- steps of one call that deliver nothing
  local AT_ONCE, OF_A_GROUP = 64, 2 -- members of a line that are read at first
  local last_tag -- beyond it the turn is that of other partitions

  -- Whose first task was nothing to run has paid nothing, and stays the lowest: it rests until all others had their turn.
  local function nobody() return { members = {}, count = 0 } end
  local function note(some, member) some.members[member], some.count = true, some.count + 1 end
  local resting = nobody()
  local function wake_the_resting()
    if resting.count == 0 then return false end
    resting = nobody()
    return true
  end

  -- Whom something goes wrong with is set aside, and the others are served.
  local current, current_line
  local function set_aside(failure)
    if not current then error(failure, 0) end
    local user = current
    current = nil
    delivering.undo()
    damage().note(user, failure)
    damage().leave(user, current_line)
    work.moved = work.moved + 1
  end

  local function serve(user)
    local u = nodes.user(user)
    local gate = governed and not u.served and gates.at(u)
    if gate then
      work.moved = work.moved + 1
      return choice.hold_back(u, gate)
    end
    if has_weights or (governed and not u.served) then nodes.reweight(u) end
    u.served = true
    local known = delivering.knowledge(user)
    local cost = delivering.start_next(user, known)
    if cost then
      nodes.charge(u, cost)
      if governed then gates.note_start(u) end
    elseif known.is_lost then -- its lanes were
      damage().note(user, 'its tasks that waited are gone')
      work.moved = work.moved + 1
      return choice.leave(u)
    else
      note(resting, user)
    end
    if known.critical + known.normal == 0 then return choice.leave(u) end
    if not governed then return end
    gate = gates.at(u)
    if gate then return choice.hold_back(u, gate) end
    reservations.update(u)
  end

  -- Those who are held back, and tasks that must wait for their name, take time as well.
  function it.has_room() return work.has_room() and work.moved < MOVES end

  -- In front of '*', which is back, stand users whom nobody served for a time.
  local function is_raised(member, line)
    current, current_line = member, line
    local node = string.byte(member) == 64 and lines.at(string.sub(member, 2)) or nodes.user(member)
    local is_above = node.up == line and assignments.raise(node)
    current = nil
    return is_above
  end

  -- Turns among the users of an assignment. A group all of whose users rest is idle.
  local function new_turns(name)
    local known, idle, at_once = {}, nobody(), math.min(want - work.delivered, AT_ONCE)

    local function front_of(line)
      local front = known[line]
      if not front then
        local most = line.path and OF_A_GROUP or at_once
        front = name == '*' and fronts.new(line, most, resting, idle) or fronts.of_tree(name, line, most, resting, idle)
        known[line] = front
      end
      return front
    end

    local function drop_group(line)
      note(idle, line.member)
      if name == '*' then
        if not lines.lowest(line) then lines.remove(line.up, line.member) end
      else
        fronts.close(known[line])
        if call('EXISTS', known[line].key) == 0 then assignments.remove_group(name, line) end
      end
    end

    local function descend(line)
      local member = fronts.first(front_of(line))
      while member and name == '*' and has_returned and is_raised(member, line) do
        work.moved = work.moved + 1
        member = fronts.first(known[line])
      end
      if between and member and line == root then
        while member and work.moved < MOVES and between.lift(member) do
          work.moved = work.moved + 1
          member = fronts.first(known[line])
        end
        if work.moved >= MOVES then
          between.cut()
          return nil
        end
        if member and last_tag and lines.tag(root, member) > last_tag then return nil end
      end
      if not member or string.byte(member) ~= 64 then return member, line end -- '@' begins no user, its own is encoded
      local inner = lines.at(string.sub(member, 2))
      local user, of_line = descend(inner)
      if user then return user, of_line end
      drop_group(inner)
      return descend(line)
    end

    local turns = {}

    -- Reservations first, else from the first line inwards the lowest.
    function turns.next_user()
      local first = governed and lines.lowest(reservations.line) and fronts.first(front_of(reservations.line))
      if first then return first, nodes.user(first).up end
      return descend(root)
    end

    -- What was served is known in the trees of the assignment.
    function turns.close()
      for _, front in pairs(known) do
        if front.moved then fronts.close(front) end
      end
      if has_assigned then assignments.forget_lows() end
    end

    return turns
  end

  local function serve_group(name)
    local turns = new_turns(name)
    local function take_turns()
      while work.moved < MOVES and work.has_room() do
        current, current_line = turns.next_user()
        if not current then return end
        serve(current)
        current = nil
      end
    end
    local is_done, failure = pcall(take_turns)
    while not is_done do
      set_aside(failure)
      is_done, failure = pcall(take_turns)
    end
    turns.close()
  end

  local function serve_groups()
    last_tag = between and between.last_tag()
    if governed and governed.all_paused then return end
    for _, name in ipairs(work.groups) do
      if it.has_room() then serve_group(name) end
    end
  end

  function it.serve()
    repeat
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
    place_key('deferred', user), place_key('dead', user), place_key('lapsing', user)
end

-- lib/keeper.lua
-- Workers that go to sleep, or are no longer idle, and the moment that one of them keeps.

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
    if has_damaged then
      first = call('ZRANGE', prefix .. 'damaged', 0, 0, 'WITHSCORES')
      if first[1] and tonumber(first[2]) < at then at, user = tonumber(first[2]), first[1] end
    end
    if has_expiring then
      local expires = deadlines.next_ms()
      if expires and expires < at then at, user = expires, call('ZRANGE', prefix .. 'expiring', 0, 0)[1] end
    end
    if has_limits then
      first = call('ZRANGE', prefix .. 'held', 0, 0, 'WITHSCORES')
      if first[1] and tonumber(first[2]) < at then
        at, user = tonumber(first[2]), call('ZRANGE', prefix .. 'held-users:' .. first[1], 0, 0)[1]
      end
      first = call('ZRANGE', prefix .. 'exchanges', 0, 0, 'WITHSCORES')
      local told_at = math.max(tonumber(first[2] or math.huge), now + SECOND_MS) -- who claimed last was told of what is over
      if told_at < at then at, user = told_at, nil end
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

  -- An idle moment, in which nobody waits for the answer, is used to forget users that nothing remembers.
  local function prune_users()
    for _, user in ipairs(call('ZRANGEBYSCORE', users_key, '-inf', now - USER_TTL, 'LIMIT', 0, LOOKS)) do
      if call('EXISTS', prefix .. 'bytes:' .. user) == 1 then (bytes or new_bytes()).prune(user) end
      local kept = call('EXISTS', prefix .. 'user:' .. user, prefix .. 'bytes:' .. user, places_of(user))
      if kept > 0 then
        call('ZADD', users_key, now, user)
      else
        call('ZREM', users_key, user)
      end
    end
  end

  -- The worker wants to be told; how long may it sleep when nobody tells it?
  local function in_waiting_sets(verb)
    for _, name in ipairs(work.groups) do
      call(verb, name == '*' and prefix .. 'waiting' or prefix .. 'waiting:' .. name, worker)
    end
  end

  function it.wait()
    if work.delivered == 0 then prune_users() end
    in_waiting_sets('SADD')
  end

  function it.next_event()
    local at = new_keeping(worker).keep()
    if steals then at = math.min(at, stealing.next_look()) end
    if call('EXISTS', prefix .. 'announcements') == 1 or serving.was_cut() or work.is_swept or work.is_weighing then at = now end
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

-- lib/lost_ready.lua
-- A queue whose `ready` is lost says so: nobody stands in line, and somebody has tasks that nothing holds back.
local look_for_lost_ready
do

local function new_search()
  local LOOKS = 5 -- at those who became ready last

  local function is_held_back(user)
    if call('ZSCORE', prefix .. 'damaged', user) then return true end
    if not governed then return false end
    return sweep_asked or call('ZSCORE', prefix .. 'swept', user) or call('ZSCORE', prefix .. 'parked', user)
      or gates.at(nodes.user(user))
  end

  local function is_forgotten(user)
    if call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user)) == 0 then return false end
    local node = nodes.user(user)
    while node.up do
      if not lines.tag(node.up, node.member) then return not is_held_back(user) end
      node = node.up
    end
    return false
  end

  -- A user with a key that cannot be read tells nothing.
  return function()
    for _, user in ipairs(call('ZREVRANGE', users_key, 0, LOOKS - 1)) do
      local is_done, found = pcall(is_forgotten, user)
      if is_done and found then
        error({ err = 'LOSTREADY the key "ready" of this queue is lost, and those who stood in it are not served: run '
          .. '`fairque doctor --repair`, which finds them' }, 0)
      end
    end
  end
end

-- For a claim that found nobody: one read where nothing waits.
function look_for_lost_ready()
  if lines.lowest(root) then return end
  local waiting = call('HMGET', state_key, 'critical', 'normal')
  local queued = (waiting[1] or 0) + (counts.critical or 0) + (waiting[2] or 0) + (counts.normal or 0)
  if queued > 0 then new_search()() end
end
end

-- lib/between.lua
-- Between partitions. Tags and clock of one are its own; `offset` is added where they are compared with those of others.
-- In the state:
--   offset     grows where the partition was away while its users waited: all of them are brought forward by it
--   elsewhere  the virtual time of the queue as it is known here, in that of the partition: who comes enters there
--   low        the lowest tag when the last claim was done; none where nobody was ready
local exactly
local new_between
do

function exactly(number) return string.format('%.17g', number) end

local function new_stand()
  return { offset = tonumber(of_queue.offset or 0), low = tonumber(of_queue.low), moves = of_queue.moves }
end

-- The lowest tag of those whom an assignment serves, or nil. Its tree may have one that is too low, until it comes up.
local function lowest_of(name)
  local first, low = lines.lowest(root)
  if not first or name == '*' then return first and low or nil end
  lines.flush(root)
  return tonumber(call('ZRANGE', assignments.tree_key(name, root), 0, 0, 'WITHSCORES')[2] or nil)
end

-- Before all others go those below what is reserved for them. Where nobody is ready and somebody will be as soon as a claim
-- comes, that is told by `is_due`.
local function head_of(names, stand, is_due)
  local head
  for _, name in ipairs(names) do head = head or lowest_of(name) end
  if head and governed and lines.lowest(reservations.line) then return -math.huge end
  if not head and is_due then head = root.elsewhere or root.clock end
  return head and head + stand.offset
end

-- Whether somebody moves, and its mover fell silent: lib/moves.lua.
local function has_forsaken(stand)
  local first = stand.moves and call('ZRANGE', prefix .. 'moves', 0, 0, 'WITHSCORES')[2]
  return first and tonumber(first) <= now and 1 or 0
end

-- Ms until something of limits over all users is to be asked of another partition, or told there; -1: nothing.
local function next_exchange()
  local first = has_limits and call('ZRANGE', prefix .. 'exchanges', 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, math.floor(first) - now) or -1
end

-- As heads.lua returns it.
local function sight_of(names, stand, is_due)
  local head, time_now = head_of(names, stand, is_due), (root.elsewhere or 0) + stand.offset
  local workers = call('ZCARD', prefix .. 'workers')
  local passed = exactly(root.clock + stand.offset)
  return { head and exactly(head) or '', exactly(time_now), exactly(root.mean), lines.size(root), workers, passed,
    has_forsaken(stand), next_exchange(), revision_known }
end

function new_between(claim, is_for_all)
  local groups, latest, floor, up_to = claim[10], claim[17], claim[18], claim[19]
  local it, stand = {}, new_stand()
  local EXACT = 1e-12 -- of what is added up, at least: the head of a partition is not beyond itself
  local offset, low, entered_at = stand.offset, stand.low, root.elsewhere or 0
  local lift_below, lifted, is_cut, known = -math.huge, {}, false, root.elsewhere

  -- Who waited here while nobody served this partition is owed no more than the horizon. Who came since the last claim
  -- came at a time that may have passed elsewhere: no tag of those who had been here is below `low`.
  function it.catch_up()
    if low then stand.offset = math.max(offset, floor - low) end
    root.elsewhere = math.max(entered_at, latest - stand.offset)
    lift_below = low and math.min(low, root.elsewhere) or root.elsewhere
  end

  -- Its turn would come too soon: it moves to where it would have come, had the time been known.
  function it.lift(member)
    local tag = lines.tag(root, member)
    if tag >= lift_below or lifted[member] then return false end
    lifted[member] = true
    lines.set(root, member, root.elsewhere + math.min(tag - entered_at, root.mean / 2))
    return true
  end

  -- Some who came are left to the next claim.
  function it.cut() is_cut = true end

  -- Up to which tag users are served, or nil.
  function it.last_tag()
    return up_to and up_to - stand.offset + EXACT * math.max(1, math.abs(up_to), math.abs(stand.offset))
  end

  function it.has_more() return lines.lowest(root) end

  -- Where newcomers were not lifted, those who had been here are at `low` or above.
  local function low_by_now()
    local first, lowest = lines.lowest(root)
    if is_for_all and not is_cut then return first and lowest or nil end
    return low and first and math.max(low, lowest) or low
  end

  function it.save()
    stand.low = low_by_now()
    if stand.low ~= low then
      if stand.low then call('HSET', state_key, 'low', exactly(stand.low)) else call('HDEL', state_key, 'low') end
    end
    if root.elsewhere ~= known or stand.offset ~= offset then
      call('HSET', state_key, 'offset', exactly(stand.offset), 'elsewhere', exactly(root.elsewhere or 0))
    end
  end

  function it.sight() return sight_of(groups, stand) end

  return it
end
end

-- lib/assigned.lua

-- Whether the lists of all assignments of a claim are known. Those that came with the call are noted.
local function knows_assignments(claim)
  local worker, groups, lists = claim[1], claim[10], claim[16]
  if not has_assigned and groups[1] == '*' then return true end
  for at, name in ipairs(groups) do
    if (name ~= '*' or has_assigned) and not assignments.note(name, lists[at], worker) then return false end
  end
  return true
end

-- lib/rest.lua
-- A claim that found nothing is left here, should work come: who brings that answers it (lib/resting.lua). For a while only,
-- so that of a worker that stands still it is worth nothing. It asks for one task, and looks at nothing else.
-- resting:<w>  string  a `Claim`: the call whose number it has was answered with nothing
local leave_at_rest
local resting_key
do

local RESTED_MS = 10000 -- twice the time between two looks of an idle worker
function resting_key(worker) return prefix .. 'resting:' .. worker end

function leave_at_rest(claim)
  local worker = claim[1]
  local want, waits, steals, rested, lists, it = 1, false, false, false, {}, {}
  for field, value in pairs(claim) do it[field] = value end
  it[2], it[7], it[8], it[22], it[16] = want, waits, steals, rested, lists
  call('SET', resting_key(worker), cmsgpack.pack(it), 'PX', RESTED_MS)
end
end
local claim_tasks
do

local OUTDATED = -3 -- what governs all users was changed, and not here: see lib/revision.lua
local UNKNOWN = -2 -- instead of a time to sleep: an assignment is not known, and its list was not sent

function claim_tasks(claim)
  local worker, want, priority_step_ms, dead_letter_ttl_ms, waits, steals, repeats, latest, revision, number, rests,
    rested =
    claim[1], claim[2], claim[5], claim[6], claim[7], claim[8], claim[15], claim[17], claim[20], claim[14], claim[21],
    claim[22]
  local LOOKS = 20
  local work = new_work(claim)
  if revision > revision_known then return { now, OUTDATED } end
  if came_too_late(claim) then return work.reply(-1) end
  if not knows_assignments(claim) then return { now, UNKNOWN } end
  call('ZADD', prefix .. 'workers', now, worker)
  local between = latest and new_between(claim, work.everyone)
  if (repeats or rested) and claim_again(claim, work) then return work.reply(0, between) end
  local promotion, stealing, serving = new_promotion(claim, work), new_stealing(claim, work), new_serving(claim, work, between)
  local stolen, sleep = 0, 0

  local function look_around()
    if has_expiring then expire_due(dead_letter_ttl_ms) end
    if has_announcements or announcements[1] then pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms) end
    if has_damaged then damage().look_again(work.promoted) end
    promotion.promote_due()
    if sweep_asked or has_returned then work.is_swept = new_sweep().go_on(sweep_asked, work.promoted) end
    if governed then governed.unpark(LOOKS, work.promoted) end
    if limited then limited.tick(work.promoted) end
    if is_weighing then work.is_weighing = new_weighing().go_on() end
    if steals then stealing.steal() end
  end

  local function hand_out()
    look_around()
    stolen = work.delivered
    if between and work.everyone then between.catch_up() end
    if not stealing.serves_nothing_else() then serving.serve() end
    if between then between.save() end
    put_off_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
    promotion.announce()
    local waiting = new_waiting(claim, work, stealing, serving)
    if stealing.serves_nothing_else() then
      waiting.stay_awake()
      sleep = waiting.next_event()
    elseif between and work.has_room() and between.has_more() then
      waiting.stay_awake() -- those who are ready have their turn when others elsewhere had theirs
    elseif work.has_room() and waits then
      if work.delivered == 0 then look_for_lost_ready() end
      sleep = waiting.next_event()
      waiting.wait()
      if rests and number > 0 then
        if work.delivered == 0 and not repeats then leave_at_rest(claim) else call('DEL', resting_key(worker)) end
      end
    elseif work.delivered >= want then
      waiting.stay_awake()
    end
  end

  local is_done, failure = pcall(hand_out)
  if not is_done then put_off_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms) end
  if not is_done and work.delivered == 0 then error(failure, 0) end
  count('started', work.delivered - stolen)
  keep_claimed(claim, work)
  return work.reply(sleep, between)
end
end
-- ARGV[1] is the msgpack of Claim: worker: str, want: int, lease_ms: int, max_message_bytes: int, priority_step_ms:
--   int, dead_letter_ttl_ms: int, waits: bool, steals: bool, fairness: str, groups: Sequence[str], holds: int,
--   suspects: int, max_deliveries: int, number: int, repeats: bool, lists: Sequence[Sequence[str]], latest: float |
--   None, floor: float, up_to: float | None, revision: int, rests: bool, rested: bool
--   waits: note the worker as waiting when short. steals: look at what silent workers have. fairness: cost or time.
--   groups: the assignments it serves, first to last; ``*`` is everyone. lists: the encoded users of each, where the
--   script asked for them. holds: deliveries that it has, suspects: of them, those that were lost before and came less
--   than a lease ago. max_deliveries: deaths of a task in workers that ran nothing else, until it is given up.
--   number: of this call of the worker, under which its answer is kept; 0: it is not. It grows with each answer; a call
--   that comes behind a later one, or behind its own repetition, is given nothing. repeats: a call of this number may
--   have been answered.
--   latest: in a queue with partitions, its virtual time as far as is known, from which one goes on that stood empty.
--   floor: from which one goes on that was away. up_to: nobody is served who stands at a later one; None: everybody.
--   revision: of what governs all users, as far as is known.
--   rests: where it comes to nothing, it is left for whoever puts in to answer it, by a message. rested: this number was
--   answered with nothing and left so.
local args
local worker, want, lease_ms, max_message_bytes, priority_step_ms, dead_letter_ttl_ms, waits, steals, fairness, groups, holds, suspects, max_deliveries, number, repeats, lists, latest, floor, up_to, revision, rests, rested
local is_done, reply
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  worker, want, lease_ms, max_message_bytes, priority_step_ms, dead_letter_ttl_ms, waits, steals, fairness,
    groups, holds, suspects, max_deliveries, number, repeats, lists, latest, floor, up_to, revision, rests, rested =
    args[1], args[2], args[3], args[4], args[5], args[6], args[7], args[8], args[9], args[10], args[11], args[12],
    args[13], args[14], args[15], args[16], args[17], args[18], args[19], args[20], args[21], args[22]
  is_done, reply = pcall(claim_tasks, args)
  save_state()
  if not is_done then error(reply, 0) end
  return reply
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

-- Bytes of users that may have no more than `max_bytes`: bodies, errors, results and chunks of their tasks, values that those
-- share, and bodies of schedules. `bytes` is nil in a queue where nobody has such a limit.
-- A call writes what it counted at its end, by save_state() or save_bytes().
-- bytes:<u>           hash  used: all of it; <bucket>: what expires by itself before the end of these ten seconds, counted
--                           since 1970; gen: when the count began, in us
-- bytes-expiring:<u>  zset  the buckets
-- xcom-bytes:<u>      hash  namespace → bytes of its values
-- While what was there before its user had a limit is counted (lib/weighing.lua), `weighed` has what is in the counts of
-- those whose `gen` is in `weighing` of the state.
--@include base
--@include state

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
local bytes = has_byte_limits and new_bytes() or nil

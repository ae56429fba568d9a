#!lua
-- Share a value among the tasks of a user.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(log values), plus at most 16 expired ones removed

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
-- ARGV[1] is the msgpack of XcomPush: user: str, namespace: str, key: str, value: Value, ttl_ms: int
local args = cmsgpack.unpack(ARGV[1])
local user, namespace, key, value, ttl_ms = args[1], args[2], args[3], ARGV[args[4]] or '', args[5]
new_xcom().push(user, namespace, key, value, ttl_ms)
return 1

-- Values that the tasks of a user share. `user` and `namespace` come percent-encoded; a key and a value are any bytes.
-- xcom          hash  key → expiry in ms as a big-endian double, then the value
-- xcom-expiry   zset  key → expiry in ms: what has expired is found without a scan
-- xcom-spaces   zset  namespace → ms at which its last value expires: all that a user has is found without a scan
-- Each of them expires by itself, not before the last value that it tells of.
local XCOM_SWEEP = 16

local function xcom_names(user, namespace)
  local of = user .. ':' .. namespace
  return prefix .. 'xcom:' .. of, prefix .. 'xcom-expiry:' .. of, prefix .. 'xcom-spaces:' .. user
end

local function xcom_outlive(key, expiry)
  if call('PEXPIRETIME', key) < expiry then call('PEXPIREAT', key, expiry) end
end

local function xcom_expired(key)
  return call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, XCOM_SWEEP)
end

local function xcom_remove(user, namespace, keys)
  local values, expiries, spaces = xcom_names(user, namespace)
  call('HDEL', values, unpack(keys))
  call('ZREM', expiries, unpack(keys))
  if call('EXISTS', values) == 0 then call('ZREM', spaces, namespace) end
end

-- A few of those that have expired; the others go with the next calls, or with their key.
local function xcom_sweep(user, namespace)
  local _, expiries, spaces = xcom_names(user, namespace)
  local keys, namespaces = xcom_expired(expiries), xcom_expired(spaces)
  if #keys > 0 then xcom_remove(user, namespace, keys) end
  if #namespaces > 0 then call('ZREM', spaces, unpack(namespaces)) end
end

local function xcom_push(user, namespace, key, value, ttl_ms)
  xcom_sweep(user, namespace)
  local values, expiries, spaces = xcom_names(user, namespace)
  local expiry = now + ttl_ms
  call('HSET', values, key, struct.pack('>d', expiry) .. value)
  call('ZADD', expiries, expiry, key)
  call('ZADD', spaces, 'GT', expiry, namespace)
  xcom_outlive(values, expiry)
  xcom_outlive(expiries, expiry)
  xcom_outlive(spaces, expiry)
end

-- Its value, or false.
local function xcom_pull(user, namespace, key)
  local stored = call('HGET', (xcom_names(user, namespace)), key)
  return stored and struct.unpack('>d', stored) > now and string.sub(stored, 9)
end

local function xcom_clear(user, namespace)
  local values, expiries, spaces = xcom_names(user, namespace)
  call('UNLINK', values, expiries)
  call('ZREM', spaces, namespace)
end

-- Values that the tasks of a user share. `user` and `namespace` come percent-encoded; a key and a value are any bytes.
-- xcom          hash  key → expiry in ms as a big-endian double, then the value
-- xcom-expiry   zset  key → expiry in ms: what has expired is found without a scan
-- xcom-spaces   zset  namespace → ms at which its last value expires: all that a user has is found without a scan
-- Each of them expires by itself, not before the last value that it tells of.
--@include base
--@include absent
--@include bytes

local function new_xcom()
  local it = {}
  local XCOM_SWEEP, EXPIRY_BYTES = 16, 8

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

  function it.size(key, value) return #key + EXPIRY_BYTES + #value end

  local function size_of(values, key)
    local size = call('HSTRLEN', values, key)
    return size > 0 and #key + size or 0
  end

  function it.remove(user, namespace, keys)
    local values, expiries, spaces = names(user, namespace)
    if bytes then
      for _, key in ipairs(keys) do bytes.change_value(user, namespace, key, -size_of(values, key)) end
    end
    call('HDEL', values, unpack(keys))
    call('ZREM', expiries, unpack(keys))
    if call('EXISTS', values) == 0 then call('ZREM', spaces, namespace) end
  end

  -- A few of those that have expired; the others go with the next calls, or with their key.
  function it.sweep(user, namespace)
    local _, expiries, spaces = names(user, namespace)
    local keys, namespaces = expired(expiries), expired(spaces)
    if #keys > 0 then it.remove(user, namespace, keys) end
    if #namespaces == 0 then return end
    call('ZREM', spaces, unpack(namespaces))
    if not bytes then return end
    for _, gone in ipairs(namespaces) do bytes.forget_space(user, gone) end
  end

  function it.push(user, namespace, key, value, ttl_ms)
    it.sweep(user, namespace)
    local values, expiries, spaces = names(user, namespace)
    local expiry = now + ttl_ms
    if bytes then
      if call('EXISTS', values) == 0 then bytes.forget_space(user, namespace) end -- it expired as a whole
      bytes.change_value(user, namespace, key, -size_of(values, key))
      bytes.change_value(user, namespace, key, it.size(key, value))
    end
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
    if bytes then bytes.forget_space(user, namespace) end
    call('UNLINK', values, expiries)
    call('ZREM', spaces, namespace)
  end

  function it.expiries(user, namespace)
    local _, expiries = names(user, namespace)
    return expiries
  end

  return it
end

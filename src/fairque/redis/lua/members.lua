#!lua flags=no-writes
-- What is in small keys, as a check walks through all that a queue has.
-- KEYS[1]  state
-- Returns  per key: its members, of a stream ids of entries and tasks in turn; or nil where it is large, or not what it was
-- Cost     O(members)
--@include base
--@arguments
local READERS = {
  zset = { 'ZCARD', function(key) return call('ZRANGE', key, 0, -1) end },
  set = { 'SCARD', function(key) return call('SMEMBERS', key) end },
  hash = { 'HLEN', function(key) return call('HKEYS', key) end },
  stream = { 'XLEN', function(key)
    local flat = {}
    for _, entry in ipairs(call('XRANGE', key, '-', '+')) do
      flat[#flat + 1], flat[#flat + 2] = entry[1], entry[2][2] or ''
    end
    return flat
  end },
}
local left = most

local function members_of(name, kind)
  local key, reader = prefix .. name, READERS[kind]
  if call('TYPE', key).ok ~= kind then return false end
  local size = call(reader[1], key)
  if size > left then return false end
  left = left - size
  return reader[2](key)
end

local found = {}
for at, key in ipairs(keys) do
  --@fields WalkedKey key
  found[at] = members_of(name, kind)
end
return found

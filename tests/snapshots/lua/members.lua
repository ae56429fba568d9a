#!lua flags=no-writes
-- What is in small keys, as a check walks through all that a queue has.
-- KEYS[1]  state
-- Returns  per key: its members, of a stream ids of entries and tasks in turn; or nil where it is large, or not what it was
-- Cost     O(members)

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
local function uses_key(user, id) return prefix .. 'uses:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end

-- The attempt of a task that runs: the first one is not written down, as most tasks need no other.
local function attempt_in(field) return tonumber(field or 1) end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

-- What went wrong, as pcall tells it.
local function text_of(failure) return type(failure) == 'table' and failure.err or tostring(failure) end

-- What happened is done, also where nobody may be told of it.
local function publish(user, id, event) redis.pcall('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end
return (function()
-- ARGV[1] is the msgpack of Members: most: int, keys: list[WalkedKey]
--   keys: without their prefix. most: members of all of them.
-- WalkedKey: name: str, kind: str
local args = cmsgpack.unpack(ARGV[1])
local most, keys = args[1], args[2]
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
  local name, kind = key[1], key[2]
  found[at] = members_of(name, kind)
end
return found
end)()

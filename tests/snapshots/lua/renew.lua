#!lua flags=allow-oom
-- A worker's heartbeat, and its running deliveries kept alive.
-- KEYS[1]  state
-- Returns  {positions (from 0) of the deliveries that are no longer its own, positions of those that were canceled}
-- Cost     O(deliveries), and O(workers) when one has come, gone or changed

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
-- ARGV[1] is the msgpack of Renew: worker: str, ttl_ms: int, fields: Mapping[str, Any], deliveries:
--   list[HeldDelivery]
--   ttl_ms: of the worker's entry, which gets these fields.
-- HeldDelivery: lane: str, user: str, id: str, stream_id: str, attempt: int
local args = cmsgpack.unpack(ARGV[1])
local worker, ttl_ms, fields, deliveries = args[1], args[2], args[3], args[4]
local entry, flat = prefix .. 'worker:' .. worker, {}
for field, value in pairs(fields) do
  flat[#flat + 1] = field
  flat[#flat + 1] = value
end
call('ZADD', prefix .. 'workers', now, worker)
local gone = call('ZREMRANGEBYSCORE', prefix .. 'workers', '-inf', now - ttl_ms)
local had = call('HGET', entry, 'concurrency')
call('HSET', entry, 'seen', now, unpack(flat))
call('PEXPIRE', entry, ttl_ms)
if gone > 0 or tonumber(had or 0) ~= (fields.concurrency or 0) then
  local slots = 0
  for _, name in ipairs(call('ZRANGE', prefix .. 'workers', 0, -1)) do
    slots = slots + (call('HGET', prefix .. 'worker:' .. name, 'concurrency') or 0)
  end
  call('HSET', state_key, 'slots', slots)
end

local lost, canceled = {}, {}
for at, delivery in ipairs(deliveries) do
  local lane, user, id, stream_id, attempt = delivery[1], delivery[2], delivery[3], delivery[4], delivery[5]
  local known = call('HMGET', task_key(user, id), 'stream_id', 'attempt', 'canceling')
  if known[1] == stream_id and tonumber(known[2]) == attempt then
    call('XCLAIM', stream_key(lane, user), 'workers', worker, 0, stream_id, 'JUSTID')
    if known[3] then canceled[#canceled + 1] = at - 1 end
  else
    lost[#lost + 1] = at - 1
  end
end
return { lost, canceled }

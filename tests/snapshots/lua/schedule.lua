#!lua
-- Write a schedule: a new one, or one that is as its writer has read it.
-- KEYS[1]  state
-- Returns  'done' (also by an earlier try of the same call) | 'exists' | 'missing' | 'changed' (since it was read)
-- Cost     O(log schedules)

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

-- lib/schedules.lua
-- Schedules.
-- schedules       zset  id → ms at which it fires next
-- schedules-ended zset  id → ms at which one that has ended is forgotten
-- schedule:<id>   hash  user, name, spec, anchor, body, priority, delay, revision, state (active | paused | ended), slot
--                       (ms it was planned for), created, runs, skipped, misfired, last_run, last_task, and of a declared
--                       one: declared, older, orphaned
-- schedule-index  zset  <u>:<id>, all with score 0: the schedules of a user are a range
-- declared        zset  id → when a worker or scheduler last declared it
-- declarers       zset  <definition> <id> → when one last declared just this definition

local schedules_key, index_key, declared_key = prefix .. 'schedules', prefix .. 'schedule-index', prefix .. 'declared'
local ended_key = prefix .. 'schedules-ended'
local function schedule_key(id) return prefix .. 'schedule:' .. id end

local function forget_schedule(id)
  local user = call('HGET', schedule_key(id), 'user')
  if user then call('ZREM', index_key, user .. ':' .. id) end
  call('ZREM', schedules_key, id)
  call('ZREM', ended_key, id)
  call('ZREM', declared_key, id)
  return call('DEL', schedule_key(id))
end
-- ARGV[1] is the msgpack of Schedule: id: str, user: str, read: str, revision: str, next_ms: int | str, fields:
--   list[Field]
--   read: the revision that was read, '' for a new schedule. revision: from now on.
--   next_ms: of the next firing; 'keep': as it is, '': none.
-- Field: name: str, value: Value
--   One without a value is removed.
local args = cmsgpack.unpack(ARGV[1])
local id, user, read, revision, next_ms, fields = args[1], args[2], args[3], args[4], args[5], args[6]
local key = schedule_key(id)
local known = call('HMGET', key, 'revision', 'state', 'user')
if known[1] == revision then return 'done' end
if read ~= '' then
  if not known[1] then return 'missing' end
  if known[1] ~= read then return 'changed' end
elseif known[1] then
  if known[2] ~= 'ended' then return 'exists' end
  forget_schedule(id)
end
if known[3] and known[3] ~= user then call('ZREM', index_key, known[3] .. ':' .. id) end
call('HSET', key, 'revision', revision, 'user', user)
if read == '' then call('HSET', key, 'created', now_text) end
for _, field in ipairs(fields) do
  local name, value = field[1], ARGV[field[2]] or ''
  if value == '' then call('HDEL', key, name) else call('HSET', key, name, value) end
end
if next_ms == '' then
  call('ZREM', schedules_key, id)
elseif next_ms ~= 'keep' then
  call('ZADD', schedules_key, next_ms, id)
end
call('ZADD', index_key, 0, user .. ':' .. id)
call('PUBLISH', prefix .. 'schedules', '')
return 'done'

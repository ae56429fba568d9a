#!lua flags=allow-oom
-- Remove schedules.
-- KEYS[1]  state
-- Returns  how many there were
-- Cost     O(ids log schedules)

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
-- ARGV[1] is the msgpack of Unschedule: ids: Sequence[str]
local args = cmsgpack.unpack(ARGV[1])
local ids = args[1]
local removed = 0
for _, id in ipairs(ids) do removed = removed + forget_schedule(id) end
return removed

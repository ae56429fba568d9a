#!lua flags=no-writes
-- What is known of schedules: of one, or a page of those of a user or of everybody, in the order of user and id.
-- KEYS[1]  state
-- Returns  {now, per schedule: {id, ms at which it fires next or '', fields; the body only of one}}
-- Cost     O(log schedules + most)

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
-- ARGV[1] is the msgpack of Schedules: id: str, user: str, after: str, most: int
--   id, user: '' for any. after: '' or the <user>:<id> behind which the page begins.
local args = cmsgpack.unpack(ARGV[1])
local id, user, after, most = args[1], args[2], args[3], args[4]
local function ids()
  if id ~= '' then return { id } end
  local low, high = '-', '+'
  if user ~= '' then low, high = '[' .. user .. ':', '(' .. user .. ';' end
  if after ~= '' then low = '(' .. after end
  local found = call('ZRANGE', index_key, low, high, 'BYLEX', 'LIMIT', 0, most)
  for at, member in ipairs(found) do found[at] = string.sub(member, string.find(member, ':', 1, true) + 1) end
  return found
end

local FIELDS = { 'user', 'name', 'spec', 'anchor', 'priority', 'delay', 'revision', 'state', 'slot', 'created', 'runs',
  'skipped', 'misfired', 'last_run', 'last_task', 'declared', 'older', 'orphaned' }
if id ~= '' then FIELDS[#FIELDS + 1] = 'body' end
local found = { now }
for _, found_id in ipairs(ids()) do
  local values = call('HMGET', schedule_key(found_id), unpack(FIELDS))
  if values[1] then
    local flat = {}
    for at, name in ipairs(FIELDS) do
      if values[at] then
        flat[#flat + 1] = name
        flat[#flat + 1] = values[at]
      end
    end
    found[#found + 1] = { found_id, values[8] == 'active' and call('ZSCORE', schedules_key, found_id) or '', flat }
  end
end
return found

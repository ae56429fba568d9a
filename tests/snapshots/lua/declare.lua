#!lua
-- Say which schedules the code of a process declares, now and then while it runs. The definition that a living process
-- brought last counts; an older one comes back only when nobody who knows the newer one is left.
-- KEYS[1]  state
-- Returns  {per schedule: 'same' | 'absent' | 'differs' | 'older' (a newer one counts) | 'taken' (not a declared one)},
--          {declared ids that nobody declares any more, at most 100}
-- Cost     O((schedules + 100) log schedules)

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
-- ARGV[1] is the msgpack of Declare: ttl_ms: int, declarations: list[Declaration]
--   ttl_ms: for which a declaration counts.
-- Declaration: id: str, definition: str
--   definition: a fingerprint.
local args = cmsgpack.unpack(ARGV[1])
local ttl_ms, declarations = args[1], args[2]
local declarers_key = prefix .. 'declarers'
local oldest = string.format('%d', now - ttl_ms)

local function verdict(id, definition)
  local known = call('HMGET', schedule_key(id), 'user', 'declared', 'older')
  if not known[1] then return 'absent' end
  if not known[2] then return 'taken' end
  call('ZADD', declared_key, now_text, id)
  call('HDEL', schedule_key(id), 'orphaned')
  if known[2] == definition then return 'same' end
  local is_old = string.find(known[3] or '', definition, 1, true)
  if is_old and call('ZSCORE', declarers_key, known[2] .. ' ' .. id) then return 'older' end
  return 'differs'
end

call('ZREMRANGEBYSCORE', declarers_key, '-inf', oldest)
local verdicts = {}
for at, declaration in ipairs(declarations) do
  local id, definition = declaration[1], declaration[2]
  verdicts[at] = verdict(id, definition)
  call('ZADD', declarers_key, now_text, definition .. ' ' .. id)
  call('PEXPIRE', declarers_key, 2 * ttl_ms)
end
local orphans = call('ZRANGE', declared_key, '-inf', oldest, 'BYSCORE', 'LIMIT', 0, 100)
for _, id in ipairs(orphans) do call('HSET', schedule_key(id), 'orphaned', '1') end
return { verdicts, orphans }

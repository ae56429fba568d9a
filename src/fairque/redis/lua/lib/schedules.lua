-- Schedules.
-- schedules       zset  id → ms at which it fires next
-- schedules-ended zset  id → ms at which one that has ended is forgotten
-- schedule:<id>   hash  user, name, spec, anchor, body, priority, delay, revision, state (active | paused | ended), slot
--                       (ms it was planned for), created, runs, skipped, misfired, last_run, last_task, and of a declared
--                       one: declared, older, orphaned
-- schedule-index  zset  <u>:<id>, all with score 0: the schedules of a user are a range
-- declared        zset  id → when a worker or scheduler last declared it
-- declarers       zset  <definition> <id> → when one last declared just this definition
--@include base

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

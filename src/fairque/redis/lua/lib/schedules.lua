-- Schedules.
-- schedules       zset  user → ms at which the first of its schedules fires, or of its last turn where more are due
-- schedules:<u>   zset  id → ms at which it fires next
-- schedules-ended zset  id → ms at which one that has ended is forgotten
-- schedule:<id>   hash  user, name, spec, anchor, body, callbacks, priority, delay, revision, state (active | paused | ended), slot
--                       (ms it was planned for), created, runs, skipped, misfired, last_run, last_task, unended (of the
--                       ids of its tasks that may not have ended, what follows its own), recent (what came of its last
--                       slots), and of a declared one: declared,
--                       older, orphaned
-- schedules-broken zset id → ms at which it was set aside, as its hash was gone or could not be read
-- schedule-index  zset  <u>:<id>, all with score 0: the schedules of a user are a range
-- declared        zset  id → when a worker or scheduler last declared it
-- declarers       zset  <definition> <id> → when one last declared just this definition
--@include base
--@include bytes
--@include first_moment

local schedules_key, index_key, declared_key = prefix .. 'schedules', prefix .. 'schedule-index', prefix .. 'declared'
local ended_key, broken_key = prefix .. 'schedules-ended', prefix .. 'schedules-broken'
local function schedule_key(id) return prefix .. 'schedule:' .. id end
local function schedules_of(user) return place_key('schedules', user) end

-- Nothing where the key is no hash: one schedule that is damaged must not keep the others from firing.
local function read_schedule(id, ...)
  local known = redis.pcall('HMGET', schedule_key(id), ...)
  return known.err and {} or known
end

local function fire_at(user, id, ms)
  call('ZADD', schedules_of(user), ms, id)
  end_turn(schedules_key, schedules_of(user), user)
end

local function fire_no_more(user, id)
  if call('ZREM', schedules_of(user), id) == 1 then end_turn(schedules_key, schedules_of(user), user) end
end

-- Its messages are in the count of the bytes of its user.
local function weigh_schedule(user, id, sign)
  if bytes then bytes.change_schedule(user, id, sign) end
end

-- It fires no more, and is forgotten `keep` ms from now.
local function end_schedule(user, id, keep)
  call('HSET', schedule_key(id), 'state', 'ended')
  call('HDEL', schedule_key(id), 'slot')
  fire_no_more(user, id)
  call('ZADD', ended_key, string.format('%d', now + keep), id)
end

local function forget_schedule(id)
  local user = read_schedule(id, 'user')[1]
  if user then
    fire_no_more(user, id)
    weigh_schedule(user, id, -1)
    call('ZREM', index_key, user .. ':' .. id)
  end
  call('ZREM', ended_key, id)
  call('ZREM', declared_key, id)
  call('ZREM', broken_key, id)
  return call('DEL', schedule_key(id))
end

#!lua flags=allow-oom
-- Set the limits of task names, over all users.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(names)

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

-- lib/state.lua
-- What the queue keeps of itself: read once, and written back by save_state().

local of_queue = call('HMGET', state_key, 'clock', 'arrival', 'policies', 'limited', 'cursors', 'announcements',
  'limits', 'mean', 'keeper')
local clock, arrival = tonumber(of_queue[1] or 0), tonumber(of_queue[2] or 0)
local has_policies, has_limited, has_cursors = of_queue[3], of_queue[4], tonumber(of_queue[5] or 0) > 0
local has_announcements, has_limits, keeper_known = of_queue[6], of_queue[7], of_queue[9] or ''
local mean = tonumber(of_queue[8] or 0) -- see lib/ready.lua
local saved_clock, saved_arrival, saved_mean = clock, arrival, mean

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
local function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- Totals of the queue.
local counts = {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end

local save_tallies = nil -- a function in scripts that measure users: lib/metrics.lua
local tell_of_moments = nil -- a function in scripts that set moments: lib/moments.lua
local function save_state()
  if save_tallies then save_tallies() end
  if tell_of_moments then tell_of_moments() end
  if clock ~= saved_clock or arrival ~= saved_arrival or mean ~= saved_mean then
    call('HSET', state_key, 'clock', clock, 'arrival', arrival, 'mean', mean)
  end
  for field, by in pairs(counts) do
    if by ~= 0 then call('HINCRBY', state_key, field, by) end
  end
end

-- lib/wake.lua
-- Tell at most `tasks` idle workers that `user` has work, or all that serve everyone, and not the one that calls. A worker
-- whose message nobody received is gone: the next is told.

local function reaches(worker) return call('PUBLISH', prefix .. 'wake:' .. worker, '') > 0 end

local function tell_all_workers()
  for _, worker in ipairs(call('ZRANGE', prefix .. 'workers', 0, -1)) do reaches(worker) end
end

local function wake_from(set, tasks, except)
  while tasks > 0 do
    local worker = call('SPOP', set)
    if not worker then break end
    if worker ~= except and reaches(worker) then tasks = tasks - 1 end
  end
  return tasks
end

local function wake(user, tasks, except)
  if has_limited and user then tasks = wake_from(prefix .. 'waiting:' .. user, tasks, except) end
  if tasks > 0 then wake_from(prefix .. 'waiting', tasks, except) end
end
-- ARGV[1] is the msgpack of Limits: declared: bool, limits: list[NamedLimit]
--   declared: by the code of a worker, which takes back only what code declared.
-- NamedLimit: name: str, max: int | None, interval_us: int | None, burst: int | None
--   max: most that run at once. interval_us: between two starts.
local args = cmsgpack.unpack(ARGV[1])
local declared, limits = args[1], args[2]
local uncounted_key = prefix .. 'uncounted'

-- What runs counts from the beginning. Until the claims that follow have counted it, starts wait (lib/limits.lua).
local function begin_count(key, name)
  if call('EXISTS', leases_key) == 0 then return end
  call('HSET', key, 'uncounted', 1)
  call('SADD', uncounted_key, name)
  call('HSET', state_key, 'recount', '0')
end

local function end_count(name)
  if call('SREM', uncounted_key, name) == 1 and call('EXISTS', uncounted_key) == 0 then
    call('HDEL', state_key, 'recount')
  end
end

for _, limit in ipairs(limits) do
  local name, max, interval_us, burst = limit[1], limit[2], limit[3], limit[4]
  local key = prefix .. 'limit:' .. name
  local before = call('EXISTS', key)
  if max or interval_us then
    call('HDEL', key, 'max', 'rate_us', 'burst', 'declared')
    if max then call('HSET', key, 'max', max) end
    if interval_us then call('HSET', key, 'rate_us', interval_us, 'burst', burst) end
    if declared then call('HSET', key, 'declared', 1) end
  elseif not declared or call('HEXISTS', key, 'declared') == 1 then
    call('DEL', key)
  end
  local exists = call('EXISTS', key)
  if exists == 1 then
    call('ZADD', prefix .. 'limit-names', 0, name)
    if before == 0 then begin_count(key, name) end
  else
    call('ZREM', prefix .. 'limit-names', name)
    end_count(name)
  end
  count('limits', exists - before)
  if call('ZADD', prefix .. 'held', 'XX', 'CH', now, name) == 1 and wake_from(prefix .. 'waiting', 1) > 0 then tell_all_workers() end
end
save_state()
-- What is held still has to come back.
if call('HGET', state_key, 'limits') == '0' and call('EXISTS', prefix .. 'held') == 0 then
  call('HDEL', state_key, 'limits')
end
return 1

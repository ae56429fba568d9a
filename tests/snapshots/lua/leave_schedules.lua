#!lua flags=allow-oom
-- A scheduler stops: another one takes its part.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(1)
local keys_of_call, values_of_call = KEYS, ARGV
local KEYS, ARGV
local calls, NEXT = {}, {}

-- lib/base.lua
-- The queue's keys and its clock. Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash
-- tag.
local call
local prefix
local state_key
local ready_key
local due_key
local leases_key
local users_key
local time
local now_us
local now
local now_text

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
local function children_key(user, id) return prefix .. 'children:' .. user .. ':' .. id end
local function ends_key(user, id) return prefix .. 'ends:' .. user .. ':' .. id end

-- What it yields: append.lua.
local function chunks_key(user, id) return prefix .. 'chunks:' .. user .. ':' .. id end

-- The attempt of a task that runs: the first one is not written down, as most tasks need no other.
local function attempt_in(field) return tonumber(field or 1) end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

-- What went wrong, as pcall tells it.
local function text_of(failure) return type(failure) == 'table' and failure.err or tostring(failure) end

-- Not for a key, but as the server does not let one write, or a permission is missing.
local OF_ALL = { '^OOM', '^READONLY', '^MISCONF', '^NOREPLICAS', '^NOPERM', '^NOAUTH', '^CLUSTERDOWN', 'ACL failure' }
local function is_of_all(text)
  for _, pattern in ipairs(OF_ALL) do
    if string.find(text, pattern) then return true end
  end
  return false
end

-- What is damaged of one is not the others': whether it could be done, and what came of it.
local function try_alone(act, ...)
  local is_done, told = pcall(act, ...)
  if not is_done and is_of_all(text_of(told)) then error(told, 0) end
  return is_done, told
end

-- What happened is done, also where nobody may be told of it.
local function publish(user, id, event) redis.pcall('SPUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end
calls[#calls + 1] = function()
  call = redis.call
  prefix = string.sub(KEYS[1], 1, -6)
  state_key = KEYS[1]
  ready_key = prefix .. 'ready'
  due_key = prefix .. 'due'
  leases_key = prefix .. 'leases'
  users_key = prefix .. 'users'
  time = call('TIME')
  now_us = time[1] * 1000000 + time[2]
  now = math.floor(now_us / 1000)
  now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew
  return NEXT
end
return (function()

-- lib/schedule_keepers.lua
-- Of all who fire schedules, one looks at each moment at which one is due, the keeper, and one a little later, the deputy,
-- should the keeper be gone by then. The others need not look: who gives a sign of life learns that a part is free.
-- schedule-keepers  string  <keeper> <ms of its last look> <ms of its next> <deputy> <ms of its next>; '-' where there is none
local LONGEST_MS
local leave_part
local tell_keepers
do

local keepers_key
local LATE_MS, BUSY_MS = 50, 1000 -- what a keeper may be late by, and how long it may take to fire what it found
local DEPUTY_PAUSE_MS
DEPUTY_PAUSE_MS, LONGEST_MS = 900, 30000

local function read_keepers()
  local text = redis.pcall('GET', keepers_key)
  local keeper, looked, at, deputy, deputy_at =
    string.match(type(text) == 'string' and text or '', '^(%S+) (%d+) (%d+) (%S+) (%d+)$')
  return { keeper = keeper or '-', looked = tonumber(looked or 0), at = tonumber(at or 0), deputy = deputy or '-',
    deputy_at = tonumber(deputy_at or 0) }
end

local function write_keepers(k)
  local text = string.format('%s %d %d %s %d', k.keeper, k.looked, k.at, k.deputy, k.deputy_at)
  call('SET', keepers_key, text, 'PX', 2 * LONGEST_MS)
end

local function is_keeper_gone(k) return k.keeper == '-' or k.at + LATE_MS < now end

local function is_deputy_gone(k) return k.deputy == '-' or k.deputy_at + BUSY_MS < now end

-- Whether one that has no part is to take one.
local function has_part_for(scheduler)
  local k = read_keepers()
  return k.keeper ~= scheduler and k.deputy ~= scheduler and (is_keeper_gone(k) or is_deputy_gone(k))
end

-- `due_ms`: of the first schedule. One that is late was not looked at, or whoever did was stopped while it fired.
local function is_keeper_needed(k, due_ms)
  if is_keeper_gone(k) then return true end
  return due_ms and due_ms + LATE_MS <= now and (k.looked < due_ms or k.looked + BUSY_MS < now)
end

-- Whether the scheduler is the one that fires, and when it looks again, -1: when it is told to; `next_ms` is of the first
-- that is not due.
local function take_part(scheduler, due_ms, next_ms)
  local k, latest = read_keepers(), now + LONGEST_MS
  if k.keeper == scheduler or is_keeper_needed(k, due_ms) then
    k.keeper, k.looked, k.at = scheduler, now, math.min(next_ms or latest, latest)
    if k.deputy == scheduler then k.deputy, k.deputy_at = '-', 0 end
    write_keepers(k)
    return true, k.at
  end
  if k.deputy == scheduler or is_deputy_gone(k) then
    local wanted = math.max((next_ms or latest) + LATE_MS, now + DEPUTY_PAUSE_MS)
    k.deputy, k.deputy_at = scheduler, math.min(wanted, latest)
    write_keepers(k)
    return false, k.deputy_at
  end
  return false, -1
end

-- '' is for all of them.
local function tell_schedulers(names) redis.pcall('SPUBLISH', prefix .. 'schedules', names) end

-- Of a moment that may be sooner than the one that the keeper knows; everybody hears of it where there is no keeper.
function tell_keepers(next_ms)
  local k = read_keepers()
  if is_keeper_gone(k) then
    tell_schedulers('')
  elseif next_ms < k.at then
    tell_schedulers(k.keeper .. ' ' .. k.deputy)
  end
end

-- The deputy looks at once where the keeper leaves.
function leave_part(scheduler)
  local k = read_keepers()
  if k.deputy == scheduler then k.deputy, k.deputy_at = '-', 0 end
  if k.keeper == scheduler then
    k.keeper, k.looked, k.at = '-', 0, 0
    tell_schedulers(k.deputy == '-' and '' or k.deputy)
  end
  if k.keeper == '-' and k.deputy == '-' then call('DEL', keepers_key) else write_keepers(k) end
end
calls[#calls + 1] = function()
  keepers_key = prefix .. 'schedule-keepers'
  return NEXT
end
end
-- ARGV[1] is the msgpack of LeaveSchedules: scheduler: str
local args
local scheduler
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  scheduler = args[1]
  leave_part(scheduler)
  return 1
end
local function run(its_keys, its_values)
  KEYS, ARGV = its_keys, its_values
  for nth = 1, #calls do
    local came = calls[nth]()
    if came ~= NEXT then return came end
  end
end
return run(keys_of_call, values_of_call)
end)()

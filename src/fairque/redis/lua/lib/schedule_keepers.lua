-- Of all who fire schedules, one looks at each moment at which one is due, the keeper, and one a little later, the deputy,
-- should the keeper be gone by then. The others need not look: who gives a sign of life learns that a part is free.
-- schedule-keepers  string  <keeper> <ms of its last look> <ms of its next> <deputy> <ms of its next>; '-' where there is none
--@include base

local keepers_key = prefix .. 'schedule-keepers'
local LATE_MS, BUSY_MS = 50, 1000 -- what a keeper may be late by, and how long it may take to fire what it found
local DEPUTY_PAUSE_MS, LONGEST_MS = 900, 30000

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
local function tell_keepers(next_ms)
  local k = read_keepers()
  if is_keeper_gone(k) then
    tell_schedulers('')
  elseif next_ms < k.at then
    tell_schedulers(k.keeper .. ' ' .. k.deputy)
  end
end

-- The deputy looks at once where the keeper leaves.
local function leave_part(scheduler)
  local k = read_keepers()
  if k.deputy == scheduler then k.deputy, k.deputy_at = '-', 0 end
  if k.keeper == scheduler then
    k.keeper, k.looked, k.at = '-', 0, 0
    tell_schedulers(k.deputy == '-' and '' or k.deputy)
  end
  if k.keeper == '-' and k.deputy == '-' then call('DEL', keepers_key) else write_keepers(k) end
end

#!lua flags=no-writes
-- What runs, how long it has run, what of that which waits is held back, and when time alone makes more of it: for how
-- many slots it takes.
-- KEYS[1]  state
-- Returns  {now, ms of the next moments (or now, where a claim has something to do before more may start): of the first
--          scheduled task, schedule, held back user and task that expires, each or '',
--          per running task looked at: name, ms since its start, whether its worker lives (1 or 0); then
--          per name: name, mean run time in seconds or '';
--          ms at which the pause of everybody ends, and what lib/held_back.lua tells of all that waits}
-- Cost     O(tasks looked at + workers + users and keys looked at)
--@include base
--@include message
--@include run_times
--@include live_workers
--@include held_back
--@arguments
local function first(key) return call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or '' end

local lives = {}
for _, worker in ipairs(live_workers(silent_ms)) do lives[worker[1]] = true end

local running, times, known, run_times = {}, {}, {}, new_run_times()

local function learn(name)
  if known[name] then return end
  known[name] = true
  local mean = run_times.mean(name)
  times[#times + 1], times[#times + 2] = name, mean and string.format('%.9g', mean) or ''
end

local function note(user, id)
  local fields = call('HMGET', task_key(user, id), 'started', 'worker')
  local name = name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
  running[#running + 1] = name
  running[#running + 1] = fields[1] and math.max(0, now - fields[1]) or 0
  running[#running + 1] = lives[fields[2]] and 1 or 0
  learn(name)
end

-- Some of each user, so that nobody's many hide the others'.
local lanes = call('ZRANGE', leases_key, 0, most - 1)
local each = math.max(1, math.floor(most / math.max(1, #lanes)))
for _, member in ipairs(lanes) do
  local lane, user = string.match(member, '^([^:]+):(.*)$')
  local entries = redis.pcall('XRANGE', stream_key(lane, user), '-', '+', 'COUNT', each)
  for _, entry in ipairs(entries) do try_alone(note, user, entry[2][2]) end
end
local held_back = new_held_back()
local moments = { first(due_key), first(prefix .. 'schedules'), first(prefix .. 'parked'), first(prefix .. 'expiring') }
if held_back.is_changing() then moments[1] = now end
return { now, moments, running, times, held_back.pause_of_all(), held_back.look() }

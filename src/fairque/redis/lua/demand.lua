#!lua flags=no-writes
-- What runs, how long it has run, and when time alone makes more of it: for how many slots it takes.
-- KEYS[1]  state
-- Returns  {now, ms at which the first scheduled task is due or '' (now where outcomes are to be passed on, which claims
--          do), ms at which the first schedule fires or '',
--          per running task looked at: name, ms since its start, whether its worker lives (1 or 0); then
--          per name: name, mean run time in seconds or ''}
-- Cost     O(tasks looked at + workers)
--@include base
--@include message
--@include run_times
--@include live_workers
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
local has_outcomes = call('EXISTS', prefix .. 'announcements') == 1
return { now, has_outcomes and now or first(due_key), first(prefix .. 'schedules'), running, times }

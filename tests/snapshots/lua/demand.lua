#!lua flags=no-writes
-- What runs, how long it has run, and when time alone makes more of it: for how many slots it takes.
-- KEYS[1]  state
-- Returns  {now, ms at which the first scheduled task is due or '' (now where outcomes are to be passed on, which claims
--          do), ms at which the first schedule fires or '',
--          per running task looked at: name, ms since its start, whether its worker lives (1 or 0); then
--          per name: name, mean run time in seconds or ''}
-- Cost     O(tasks looked at + workers)
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
local function publish(user, id, event) redis.pcall('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end
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

-- lib/message.lua
-- What scripts read of the body of a task. A body that cannot be read belongs to somebody else.

local LONGEST_HEAD = 2200 -- of a body, with a name of 512 bytes and two limit keys

-- The name of a task, '' where the body cannot be read; second: the name and the limit keys that it was put in with, if it
-- has any, each as {text, its template percent-encoded or nil, whether it is of each user}.
local function heading_in(body)
  local ok, _, heading = pcall(cmsgpack.unpack_one, body, 19)
  if ok and type(heading) == 'table' and type(heading[1]) == 'string' then return heading[1], heading end
  return ok and type(heading) == 'string' and heading or ''
end

local function name_in(body) return (heading_in(body)) end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

local function cost_of_task(user, id)
  local head = redis.pcall('GETRANGE', body_key(user, id), 0, 17)
  return type(head) == 'string' and cost_of(head) or 1
end

-- lib/run_times.lua
-- How long tasks of a name ran lately.
-- run-times  name → 'number mean' in seconds; '' stands for all names. Of a thousand names at most
-- These are estimates: where the key is of another type, nothing is known, and nothing fails.

local function new_run_times()
  local it, run_times = {}, prefix .. 'run-times'
  local MEAN_OF, MOST_NAMES = 32, 1000

  -- Second: of how many it is.
  function it.mean(name)
    local known = redis.pcall('HGET', run_times, name)
    if type(known) ~= 'string' then return nil, 0 end
    local n, mean = string.match(known, '^(%S+) (%S+)$')
    return tonumber(mean), tonumber(n) or 0
  end

  -- Beyond so many names a new one takes the place of one at random: of names that nobody uses any more, sooner or later.
  local function make_room()
    if call('HLEN', run_times) < MOST_NAMES then return end
    for _, name in ipairs(call('HRANDFIELD', run_times, 2)) do
      if name ~= '' then return call('HDEL', run_times, name) end
    end
  end

  local function learn(name, runs, seconds)
    local mean, n = it.mean(name)
    if not mean then
      make_room()
      mean = seconds
    end
    n = math.min(n + runs, MEAN_OF)
    mean = mean + (seconds - mean) * math.min(1, runs / n)
    call('HSET', run_times, name, string.format('%d %.9g', n, mean))
    call('PEXPIRE', run_times, USER_TTL)
  end

  -- So many took so long each, in the mean.
  function it.learn(name, runs, seconds)
    if name ~= '' then pcall(learn, name, runs, seconds) end
    pcall(learn, '', runs, seconds)
  end

  return it
end

-- lib/live_workers.lua
-- The workers that gave a sign of life within so many ms and have said what they are: {name, fields}. One that has claimed
-- but not renewed yet has no record, and one whose record is gone is no worker either.

local function live_workers(silent_ms)
  local found = {}
  for _, worker in ipairs(call('ZRANGEBYSCORE', prefix .. 'workers', now - silent_ms, '+inf')) do
    local fields = call('HGETALL', prefix .. 'worker:' .. worker)
    if fields[1] then found[#found + 1] = { worker, fields } end
  end
  return found
end
-- ARGV[1] is the msgpack of Demand: most: int, silent_ms: int
--   most: running tasks to look at. silent_ms: after which a worker counts as dead.
local args
local most, silent_ms
local function first(key) return call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or '' end

local lives

local running, times, known, run_times

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
local lanes
local each
local has_outcomes
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  most, silent_ms = args[1], args[2]
  lives = {}
  for _, worker in ipairs(live_workers(silent_ms)) do lives[worker[1]] = true end
  running, times, known, run_times = {}, {}, {}, new_run_times()
  lanes = call('ZRANGE', leases_key, 0, most - 1)
  each = math.max(1, math.floor(most / math.max(1, #lanes)))
  for _, member in ipairs(lanes) do
    local lane, user = string.match(member, '^([^:]+):(.*)$')
    local entries = redis.pcall('XRANGE', stream_key(lane, user), '-', '+', 'COUNT', each)
    for _, entry in ipairs(entries) do try_alone(note, user, entry[2][2]) end
  end
  has_outcomes = call('EXISTS', prefix .. 'announcements') == 1
  return { now, has_outcomes and now or first(due_key), first(prefix .. 'schedules'), running, times }
end
local function run(its_keys, its_values)
  KEYS, ARGV = its_keys, its_values
  for _, at_call in ipairs(calls) do
    local came = at_call()
    if came ~= NEXT then return came end
  end
end
return run(keys_of_call, values_of_call)
end)()

-- Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash tag.
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

local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end
local function lane_key(lane, user) return prefix .. lane .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

local function publish(user, id, event) call('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end

-- The name of a task, '' where the body cannot be read.
local function name_in(body)
  local ok, _, name = pcall(cmsgpack.unpack_one, body, 19)
  return ok and type(name) == 'string' and name or ''
end

-- Totals of the queue, written once at the end of a script.
local counts = {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end

-- What is measured of a user, in `metrics:<u>`, and of the whole queue, in `metrics:*`: 15 doubles and the histogram of
-- waits. One string that is read and written as a whole: a third of the time that as many hash fields take.
local METRICS = { finished = 1, failed = 2, canceled = 3, retried = 4, cost = 5, busy = 6, recent_cost = 7,
  recent_busy = 8, recent = 9, recent_at = 10, since = 11, hour = 12, hour_tasks = 13, hour_cost = 14, hour_busy = 15 }
local WAITS, WAIT_BUCKETS = 15, 22 -- bucket k holds waits below 2^k ms, the last one all others
local METRICS_FORMAT = '<' .. string.rep('d', WAITS) .. string.rep('I4', WAIT_BUCKETS)
local RECENT_MS = 60000 -- what is recent fades with this time constant
local tallies = {}

local function tallies_of(user)
  local of_user = tallies[user]
  if not of_user then
    of_user = {}
    tallies[user] = of_user
  end
  return of_user
end

-- A task of the user ended, or is tried again.
local function tally(user, field)
  local of_user, at = tallies_of(user), METRICS[field]
  of_user[at] = (of_user[at] or 0) + 1
end

-- One service: how long it waited (nil: known already) and ran, in ms, and what it cost.
local function tally_service(user, wait, run, cost)
  local of_user = tallies_of(user)
  of_user[5], of_user[6] = (of_user[5] or 0) + cost, (of_user[6] or 0) + run / 1000
  of_user[9] = (of_user[9] or 0) + 1
  if wait then
    local bucket = wait < 1 and 0 or math.min(WAIT_BUCKETS - 1, math.floor(math.log(wait) / math.log(2)) + 1)
    local at = WAITS + 1 + bucket
    of_user[at] = (of_user[at] or 0) + 1
  end
end

local function save_tallies()
  if not next(tallies) then return end
  -- An hour that is over goes to the day's hash, from which bills are written.
  local USAGE_TTL, HOUR = 3456000000, 3600000 -- 40 days: an hour lies here or in a day's hash, until nobody bills it
  local function close_hour(user, m)
    if m[13] == 0 and m[14] == 0 and m[15] == 0 then return end
    local key = prefix .. 'usage:' .. user .. ':' .. string.format('%d', math.floor(m[12] / 24))
    local hour, before = string.format('%d', m[12] % 24), { 0, 0, 0 }
    local kept = call('HGET', key, hour) -- the clock of the server was set back over the end of an hour
    if kept then before = cmsgpack.unpack(kept) end
    call('HSET', key, hour, cmsgpack.pack({ m[13] + before[1], m[14] + before[2], m[15] + before[3] }))
    call('PEXPIRE', key, USAGE_TTL)
  end
  local function save(user, by)
    local key = prefix .. 'metrics:' .. user
    local blob, hour, m = call('GET', key), math.floor(now / HOUR), nil
    if blob then
      m = { struct.unpack(METRICS_FORMAT, blob) }
    else
      m = {}
      for at = 1, WAITS + WAIT_BUCKETS do m[at] = 0 end
      m[10], m[11] = now, now
    end
    if m[12] ~= hour then -- new ones come here as well: once an hour the key is given more time
      close_hour(user, m)
      m[12], m[13], m[14], m[15] = hour, 0, 0, 0
      call('SET', key, '', 'PX', USAGE_TTL)
    end
    local fade = math.exp((m[10] - now) / RECENT_MS)
    m[7], m[8] = m[7] * fade + (by[5] or 0), m[8] * fade + (by[6] or 0)
    m[9], m[10] = m[9] * fade, now
    m[13], m[14], m[15] = m[13] + (by[9] or 0), m[14] + (by[5] or 0), m[15] + (by[6] or 0)
    for at, more in pairs(by) do m[at] = m[at] + more end
    call('SETRANGE', key, 0, struct.pack(METRICS_FORMAT, unpack(m, 1, WAITS + WAIT_BUCKETS)))
  end
  local whole = {}
  for user, by in pairs(tallies) do
    save(user, by)
    for at, more in pairs(by) do whole[at] = (whole[at] or 0) + more end
  end
  for _, field in ipairs({ 'finished', 'failed', 'canceled', 'retried' }) do
    if whole[METRICS[field]] then count(field, whole[METRICS[field]]) end
  end
  save('*', whole)
end

local function save_counts()
  save_tallies()
  for field, by in pairs(counts) do
    if by ~= 0 then call('HINCRBY', state_key, field, by) end
  end
end

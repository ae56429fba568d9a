-- Measures users; what a script measured is written by its save_state().
--@include base
--@include state
--@include metrics_format

-- Of each user: finished, failed, canceled, retried, cost, busy microseconds, services, then buckets of waits and their counts.
local TALLIED = { finished = 1, failed = 2, canceled = 3, retried = 4 }
local TALLIED_WAITS = 8
local tallies = {}
local HOUR = 3600000
local HEADS = { [158] = 1, [220] = 3 } -- bytes before the values of a msgpack array: of 14, and of more than 15

local function tallies_of(user)
  local of_user = tallies[user]
  if not of_user then
    of_user = { 0, 0, 0, 0, 0, 0, 0, nil, nil } -- room for one wait
    tallies[user] = of_user
  end
  return of_user
end

-- A task of the user ended, or is tried again.
local function tally(user, how)
  local of_user, at = tallies_of(user), TALLIED[how]
  of_user[at] = of_user[at] + 1
end

local function add_wait(pairs_of, first, bucket, more)
  local at, found = first, pairs_of[first]
  while found and found ~= bucket do
    at = at + 2
    found = pairs_of[at]
  end
  if found then pairs_of[at + 1] = pairs_of[at + 1] + more else pairs_of[at], pairs_of[at + 1] = bucket, more end
end

-- One service: how long it waited (nil: known already) and ran, in ms, and what it cost.
local function tally_service(user, wait, run, cost)
  local of_user = tallies_of(user)
  of_user[5], of_user[6], of_user[7] = of_user[5] + cost, of_user[6] + math.floor(run * 1000 + 0.5), of_user[7] + 1
  if not wait then return end
  local _, power = math.frexp(wait)
  add_wait(of_user, TALLIED_WAITS, power < 0 and 0 or power < WAIT_BUCKETS and power or WAIT_BUCKETS - 1, 1)
end

local usage_ttl = nil
local function bill_ttl()
  if not usage_ttl then
    local said = redis.pcall('HGET', prefix .. 'settings', 'usage_ttl_ms')
    usage_ttl = type(said) == 'string' and tonumber(said) or 3456000000
  end
  return usage_ttl
end

-- An hour that is over goes to the day's hash, from which bills are written. It lies here or there until nobody bills it.
local function close_hour(user, at, services, cost, busy)
  if services == 0 and cost == 0 and busy == 0 then return end
  local hour = math.floor(at / HOUR)
  local key = prefix .. 'usage:' .. user .. ':' .. string.format('%d', math.floor(hour / 24))
  local field, before = string.format('%d', hour % 24), { 0, 0, 0 }
  local kept = call('HGET', key, field) -- the clock of the server was set back over the end of an hour
  if kept then before = cmsgpack.unpack(kept) end
  call('HSET', key, field, cmsgpack.pack({ services + before[1], cost + before[2], busy + before[3] }))
  call('PEXPIRE', key, bill_ttl())
end

-- What fades needs no more digits than fit half the room.
local function short(x)
  local high = x * 536870913
  return high - (high - x)
end

-- What is kept comes value by value: a table that grows while it is read takes three times as long.
local function save(user, key, by, is_new, _, finished, failed, canceled, retried, cost, busy, lately_cost, lately_busy,
    lately_services, written, since, of_hour_services, of_hour_cost, of_hour_busy, ...)
  local in_hour = now % HOUR
  if written < now - in_hour or written >= now - in_hour + HOUR then
    close_hour(user, written, of_hour_services, of_hour_cost, of_hour_busy)
    of_hour_services, of_hour_cost, of_hour_busy, is_new = 0, 0, 0, true
  end
  local passed = written < now and now - written or 0 -- the clock of the server may have been set back
  local fade, more_cost, more_busy, services = math.exp(-passed / RECENT_MS), by[5], by[6], by[7]
  local m = {
    finished + by[1], failed + by[2], canceled + by[3], retried + by[4], cost + more_cost, busy + more_busy,
    short(lately_cost * fade + more_cost), short(lately_busy * fade + more_busy / 1e6), short(lately_services * fade + services),
    now, since + passed, of_hour_services + services, of_hour_cost + more_cost, of_hour_busy + more_busy, ...,
  }
  for at = TALLIED_WAITS, #by, 2 do add_wait(m, WAITS, by[at], by[at + 1]) end
  if is_new then -- once an hour the key is given more time
    call('SET', key, cmsgpack.pack(m), 'PX', bill_ttl())
  else
    call('SET', key, cmsgpack.pack(m), 'KEEPTTL')
  end
end

local function add_to(user, key, by, blob)
  if not blob then return save(user, key, by, true, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, now, 0, 0, 0, 0) end
  local head = HEADS[string.byte(blob)] or error('no metrics')
  return save(user, key, by, false, cmsgpack.unpack_limit(blob, WAITS + 2 * WAIT_BUCKETS, head))
end

local function sum_of(tallied)
  local finished, failed, canceled, retried, cost, busy, services = 0, 0, 0, 0, 0, 0, 0
  local sum = { 0, 0, 0, 0, 0, 0, 0 }
  for _, by in pairs(tallied) do
    finished, failed, canceled, retried = finished + by[1], failed + by[2], canceled + by[3], retried + by[4]
    cost, busy, services = cost + by[5], busy + by[6], services + by[7]
    for at = TALLIED_WAITS, #by, 2 do add_wait(sum, TALLIED_WAITS, by[at], by[at + 1]) end
  end
  sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7] = finished, failed, canceled, retried, cost, busy, services
  return sum
end

function save_tallies()
  local first, whole = next(tallies)
  if not first then return end
  if next(tallies, first) then whole = sum_of(tallies) end
  for how, at in pairs(TALLIED) do
    if whole[at] > 0 then count(how, whole[at]) end
  end
  tallies['*'] = whole
  local users, keys = {}, {}
  for user in pairs(tallies) do
    users[#users + 1], keys[#keys + 1] = user, prefix .. 'metrics:' .. user
  end
  local blobs = call('MGET', unpack(keys)) -- of a key of another type nothing
  for at, user in ipairs(users) do
    pcall(add_to, user, keys[at], tallies[user], blobs[at]) -- a key that is broken costs its own user its numbers
  end
end

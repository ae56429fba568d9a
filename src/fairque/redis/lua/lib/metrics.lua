-- Measures users; what a script measured is written by its save_state().
--@include base
--@include state
--@include metrics_format

-- Of each user: finished, failed, canceled, retried, cost, busy microseconds, services, then buckets of waits and their counts.
local TALLIED = { finished = 1, failed = 2, canceled = 3, retried = 4 }
local TALLIED_WAITS = 8
local tallies = {}

local function tallies_of(user)
  local of_user = tallies[user]
  if not of_user then
    of_user = { 0, 0, 0, 0, 0, 0, 0 }
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
  local at = first
  while pairs_of[at] and pairs_of[at] ~= bucket do at = at + 2 end
  pairs_of[at], pairs_of[at + 1] = bucket, (pairs_of[at + 1] or 0) + more
end

-- One service: how long it waited (nil: known already) and ran, in ms, and what it cost.
local function tally_service(user, wait, run, cost)
  local of_user = tallies_of(user)
  of_user[5], of_user[6], of_user[7] = of_user[5] + cost, of_user[6] + math.floor(run * 1000 + 0.5), of_user[7] + 1
  if not wait then return end
  local _, power = math.frexp(wait)
  add_wait(of_user, TALLIED_WAITS, math.max(0, math.min(WAIT_BUCKETS - 1, power)), 1)
end

function save_tallies()
  if not next(tallies) then return end
  -- An hour that is over goes to the day's hash, from which bills are written. It lies here or there until nobody bills it.
  local HOUR, usage_ttl = 3600000, nil
  local function ttl()
    if not usage_ttl then
      local said = redis.pcall('HGET', prefix .. 'settings', 'usage_ttl_ms')
      usage_ttl = type(said) == 'string' and tonumber(said) or 3456000000
    end
    return usage_ttl
  end
  local function close_hour(user, m, hour)
    if m[12] == 0 and m[13] == 0 and m[14] == 0 then return end
    local key = prefix .. 'usage:' .. user .. ':' .. string.format('%d', math.floor(hour / 24))
    local field, before = string.format('%d', hour % 24), { 0, 0, 0 }
    local kept = call('HGET', key, field) -- the clock of the server was set back over the end of an hour
    if kept then before = cmsgpack.unpack(kept) end
    call('HSET', key, field, cmsgpack.pack({ m[12] + before[1], m[13] + before[2], m[14] + before[3] }))
    call('PEXPIRE', key, ttl())
  end
  -- What fades needs no more digits than fit half the room.
  local function short(x)
    local high = x * 536870913
    return high - (high - x)
  end
  local function save(user, key, blob, by)
    local m = blob and cmsgpack.unpack(blob) or { 0, 0, 0, 0, 0, 0, 0, 0, 0, now, 0, 0, 0, 0 }
    local hour, is_new = math.floor(m[10] / HOUR), not blob
    if hour ~= math.floor(now / HOUR) then
      close_hour(user, m, hour)
      m[12], m[13], m[14], is_new = 0, 0, 0, true
    end
    local passed = math.max(0, now - m[10]) -- the clock of the server may have been set back
    local fade = math.exp(-passed / RECENT_MS)
    for at = 1, 6 do m[at] = m[at] + by[at] end
    m[7], m[8], m[9] = short(m[7] * fade + by[5]), short(m[8] * fade + by[6] / 1e6), short(m[9] * fade + by[7])
    m[10], m[11] = now, m[11] + passed
    m[12], m[13], m[14] = m[12] + by[7], m[13] + by[5], m[14] + by[6]
    for at = TALLIED_WAITS, #by, 2 do add_wait(m, WAITS, by[at], by[at + 1]) end
    if is_new then -- once an hour the key is given more time
      call('SET', key, cmsgpack.pack(m), 'PX', ttl())
    else
      call('SET', key, cmsgpack.pack(m), 'KEEPTTL')
    end
  end
  local whole = { 0, 0, 0, 0, 0, 0, 0 }
  for _, by in pairs(tallies) do
    for at = 1, 7 do whole[at] = whole[at] + by[at] end
    for at = TALLIED_WAITS, #by, 2 do add_wait(whole, TALLIED_WAITS, by[at], by[at + 1]) end
  end
  for how, at in pairs(TALLIED) do count(how, whole[at]) end
  tallies['*'] = whole
  local users, keys = {}, {}
  for user in pairs(tallies) do
    users[#users + 1], keys[#keys + 1] = user, prefix .. 'metrics:' .. user
  end
  local blobs = call('MGET', unpack(keys)) -- of a key of another type nothing
  for at, user in ipairs(users) do
    pcall(save, user, keys[at], blobs[at], tallies[user]) -- a key that is broken costs its own user its numbers
  end
end

-- Measures users; what a script measured is written by its save_state().
--@include base
--@include state
--@include metrics_format

local TALLIED = { finished = 1, failed = 2, canceled = 3, retried = 4 }
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
local function tally(user, how)
  local of_user, at = tallies_of(user), TALLIED[how]
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

save_tallies = function()
  if not next(tallies) then return end
  -- An hour that is over goes to the day's hash, from which bills are written.
  local USAGE_TTL, HOUR = 3456000000, 3600000 -- 40 days: an hour lies here or in a day's hash, until nobody bills it
  local format = metrics_format()
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
      m = { struct.unpack(format, blob) }
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
    call('SETRANGE', key, 0, struct.pack(format, unpack(m, 1, WAITS + WAIT_BUCKETS)))
  end
  local whole = {}
  for user, by in pairs(tallies) do
    save(user, by)
    for at, more in pairs(by) do whole[at] = (whole[at] or 0) + more end
  end
  for how, at in pairs(TALLIED) do
    if whole[at] then count(how, whole[at]) end
  end
  save('*', whole)
end

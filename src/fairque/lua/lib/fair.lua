-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996).
-- `clock` and `arrival` are read once and written back by save_state().
local clock_state = call('HMGET', state_key, 'clock', 'arrival', 'policies', 'limited', 'cursors', 'announcements')
local clock = tonumber(clock_state[1] or 0)
local arrival = tonumber(clock_state[2] or 0)
local has_policies = clock_state[3]
local has_limited = clock_state[4]
local has_cursors = tonumber(clock_state[5] or 0) > 0
local has_announcements = clock_state[6]
local saved_clock, saved_arrival = clock, arrival

local function save_state()
  if clock ~= saved_clock or arrival ~= saved_arrival then
    call('HSET', state_key, 'clock', clock, 'arrival', arrival)
  end
  save_counts()
end

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
local function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- A sorted set of up to 128 members is a list, in which each change reads the fractions of all the others; one long
-- member turns it into a skip list for as long as it lives.
local LONG_MEMBER = string.rep('-', 65)
local function start_ready_set()
  call('ZADD', ready_key, 0, LONG_MEMBER)
end

local function weight_of(user)
  if not has_policies then return 1 end
  return tonumber(call('HGET', prefix .. 'policy:' .. user, 'weight') or 1)
end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

-- The clock, but not below the lowest tag, and at most half an own task above it. Less than a whole task, so that nobody
-- is served twice before a newcomer; more than nothing, so that newcomers, however many there are, cannot keep the
-- others from becoming the lowest.
local function entry_of(user, cost, lowest)
  if clock <= lowest then return lowest end
  return math.min(clock, lowest + cost / weight_of(user) / 2)
end

-- A user gets its first servable task, of this cost: it enters near the lowest, and never below the tag it left with.
local function join(user, cost)
  local entry = clock
  local lowest = call('ZRANGE', ready_key, 0, 0, 'WITHSCORES')
  if lowest[2] then entry = entry_of(user, cost, tonumber(lowest[2])) else start_ready_set() end
  local own = tonumber(call('HGET', prefix .. 'user:' .. user, 'tag') or 0)
  call('ZADD', ready_key, math.max(own, entry), user)
  if not lowest[2] then call('ZREM', ready_key, LONG_MEMBER) end
  call('ZADD', users_key, now, user)
end

-- The last servable task of a user was taken: its tag is kept outside `ready`.
local function leave(user, tag)
  call('ZREM', ready_key, user)
  local key = prefix .. 'user:' .. user
  call('HSET', key, 'tag', tag)
  call('PEXPIRE', key, USER_TTL)
end

-- Where a look at the silent deliveries of a lane stopped half way.
local function forget_cursor(member)
  if call('HDEL', state_key, 'cursor:' .. member) == 1 then count('cursors', -1) end
end

-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996).
-- `clock` and `arrival` are read once and written back by save_state().
local clock_state = call('HMGET', state_key, 'clock', 'arrival', 'policies', 'limited', 'cursors', 'announcements',
  'limits')
local clock = tonumber(clock_state[1] or 0)
local arrival = tonumber(clock_state[2] or 0)
local has_limited = clock_state[4]
local has_cursors = tonumber(clock_state[5] or 0) > 0
local has_announcements = clock_state[6]
local has_policies, has_limits = clock_state[3], clock_state[7]
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

-- Into a set of those that are ready: at the clock, but not below the lowest tag, and at most half a service above it.
-- Less than a whole one, so that nobody is served twice before a newcomer; more than nothing, so that newcomers, however
-- many there are, cannot keep the others from becoming the lowest. Never below the tag it left with. Returns the tag.
-- A sorted set of up to 128 members is a list, in which each change reads the fractions of all the others; one long
-- member turns it into a skip list for as long as it lives.
local LONG_MEMBER = string.rep('-', 65)
local function enter(key, member, own, at, service)
  local lowest = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if not lowest[2] then
    local tag = math.max(own, at)
    call('ZADD', key, 0, LONG_MEMBER, tag, member)
    call('ZREM', key, LONG_MEMBER)
    return tag
  end
  local first = tonumber(lowest[2])
  local tag = math.max(own, first, math.min(at, first + service / 2))
  call('ZADD', key, tag, member)
  return tag
end

--@include govern
-- The user has servable work, of which the first task costs this much. False: a policy holds it back.
local function admit(user, cost)
  if governed then return governed.admit(user, cost) end
  if call('ZSCORE', ready_key, user) then return true end
  enter(ready_key, user, tonumber(call('HGET', prefix .. 'user:' .. user, 'tag') or 0), clock, cost)
  call('ZADD', users_key, now, user)
  return true
end

-- The last servable task of a user was taken: its tag is kept outside `ready`.
local function leave(user, tag)
  if governed then return governed.leave(governed.user(user)) end
  call('ZREM', ready_key, user)
  local key = prefix .. 'user:' .. user
  call('HSET', key, 'tag', tag)
  call('PEXPIRE', key, USER_TTL)
end

-- What a service cost beyond what was charged at its start; less than nothing is given back.
local function adjust(user, by)
  if governed then return governed.adjust(governed.user(user), by) end
  if call('ZSCORE', ready_key, user) then
    call('ZINCRBY', ready_key, by, user)
    return
  end
  local key = prefix .. 'user:' .. user
  call('HINCRBYFLOAT', key, 'tag', by)
  call('PEXPIRE', key, USER_TTL)
end

-- A task was taken out of a lane of the user.
local function retire(user)
  if call('EXISTS', lane_key('critical', user), lane_key('normal', user)) > 0 then return end
  if governed then governed.unpark_one(user) end
  local tag = call('ZSCORE', governed and governed.user(user).ready_key or ready_key, user)
  if tag then leave(user, tag) end
end

-- Where a look at the silent deliveries of a lane stopped half way.
local function forget_cursor(member)
  if call('HDEL', state_key, 'cursor:' .. member) == 1 then count('cursors', -1) end
end

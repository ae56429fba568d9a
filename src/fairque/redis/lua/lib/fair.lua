-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996).
--@include base
--@include state
--@include ready
--@include govern

-- The user has servable work, of which the first task costs this much. False: a policy holds it back.
local function admit(user, cost)
  if governed then return governed.admit(user, cost) end
  if call('ZSCORE', ready_key, user) then return true end
  local kept = call('HMGET', user_key(user), 'tag', 'capped')
  if kept[2] then call('HDEL', user_key(user), 'capped') end
  enter(ready_key, user, tonumber(kept[1] or 0), clock, cost, mean, kept[2])
  call('ZADD', users_key, now, user)
  return true
end

-- The last servable task of a user was taken: its tag is kept outside `ready`. What comes into an empty line next begins
-- where this one ended. `others`: whether anybody else is ready, where that is known.
local function leave(user, tag, others)
  if governed then return governed.leave(governed.user(user)) end
  call('ZREM', ready_key, user)
  call('HSET', user_key(user), 'tag', tag)
  call('PEXPIRE', user_key(user), USER_TTL)
  if others == nil then others = call('EXISTS', ready_key) == 1 end
  if not others then clock = math.max(clock, tag) end
end

-- What a service cost beyond what was charged at its start; less than nothing is given back.
local function adjust(user, by)
  if governed then return governed.adjust(governed.user(user), by) end
  move_late(ready_key, user, user_key(user), by, clock, mean)
end

-- A task was taken out of a lane of the user.
local function retire(user)
  if call('EXISTS', place_key('critical', user), place_key('normal', user)) > 0 then return end
  if governed then governed.unpark_one(user) end
  call('HDEL', user_key(user), 'capped') -- nothing waits that its cap kept from running
  local tag = call('ZSCORE', governed and governed.user(user).ready_key or ready_key, user)
  if tag then leave(user, tonumber(tag)) end
end

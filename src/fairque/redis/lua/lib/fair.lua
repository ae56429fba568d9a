-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996).
--@include base
--@include state
--@include ready
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
  if call('EXISTS', place_key('critical', user), place_key('normal', user)) > 0 then return end
  if governed then governed.unpark_one(user) end
  local tag = call('ZSCORE', governed and governed.user(user).ready_key or ready_key, user)
  if tag then leave(user, tag) end
end

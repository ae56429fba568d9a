-- Where a task waits: in a lane, or among the scheduled ones of its user.
--@include base
--@include state
--@include message
--@include fair

local function score_of(priority, step_us)
  if priority == 6 then return 'critical', next_arrival() end
  return 'normal', next_arrival() - (priority - 1) * step_us
end

-- True: the user may be served now.
local function place(user, id, lane, score)
  call('ZADD', place_key(lane, user), score, id)
  count(lane, 1)
  return admit(user, cost_of_task(user, id))
end

-- `due` knows of each user only its earliest task, so that one user's schedule costs the others nothing.
local function schedule(user, id, at)
  call('ZADD', place_key('scheduled', user), at, id)
  call('ZADD', due_key, 'LT', at, user)
  call('ZADD', users_key, now, user)
  count('scheduled', 1)
end

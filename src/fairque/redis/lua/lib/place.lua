-- Where a task waits: in a lane, or among the scheduled ones of its user.
--@include base
--@include state
--@include message
--@include fair
--@include moments

local function due_at(when)
  if when == '' then return 0 end
  if string.byte(when) == 99 then return now + tonumber(string.match(when, '%d+$')) end -- 'collect …'
  local delay = string.match(when, '%+(%d+)$')
  return delay and now + tonumber(delay) or tonumber(when)
end

local function score_of(priority, step_us, came)
  if priority == 6 then return 'critical', came or next_arrival() end
  return 'normal', (came or next_arrival()) - (priority - 1) * step_us
end

-- The arrival that a score was made of.
local function arrival_of(lane, score, priority, step_us)
  return lane == 'critical' and tonumber(score) or score + (priority - 1) * step_us
end

-- True: the user may be served now.
local function place(user, id, lane, score)
  call('ZADD', place_key(lane, user), score, id)
  count(lane, 1)
  return admit(user, cost_of_task(user, id))
end

-- Those that are due in one millisecond stand in the order in which they came, by fractions of it: what reads a score as
-- a time rounds it down. A step is the smallest that a time in ms can carry until 2109; behind 2,048 of them ids decide.
local STEP_MS = 2 ^ -11
local function place_in_ms(waiting, at)
  local last = call('ZREVRANGEBYSCORE', waiting, '(' .. string.format('%d', at + 1), at, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  return last and math.min(last + STEP_MS, at + 1 - STEP_MS) or at
end

-- `due` knows of each user only its earliest task, so that one user's schedule costs the others nothing.
local function schedule(user, id, at)
  local waiting = place_key('scheduled', user)
  local score = place_in_ms(waiting, at)
  call('ZADD', due_key, 'LT', at, user)
  call('ZADD', users_key, now, user)
  call('ZADD', waiting, score, id)
  note_moment(at, user)
  count('scheduled', 1)
end

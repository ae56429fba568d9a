-- Tasks that begin by a moment, or not at all.
-- expiring:<u>  zset  those of a user that have not begun → ms by which they must
-- expiring      zset  user → ms of its first one, or of its last turn where it has more that is due: as `due` has it of
--                     what is scheduled
-- `expiring` in the state tells that there are some, `expires` of a task the ms by which it must begin.
--@include base
--@include state
--@include moments

--@once
local deadlines = {}
local expiring_key = prefix .. 'expiring'

-- `at` is a number, or the text of one.
function deadlines.note(user, id, at)
  call('ZADD', place_key('expiring', user), at, id)
  call('ZADD', expiring_key, 'LT', at, user)
  call('HSET', state_key, 'expiring', 1)
  note_moment(tonumber(at), user)
end

function deadlines.pass_over(user)
  call('ZREM', expiring_key, user)
  if call('EXISTS', expiring_key) == 0 then call('HDEL', state_key, 'expiring') end
end

-- It has begun, or ended. One that had its turn stays behind the others.
function deadlines.forget(user, id)
  local of_user = place_key('expiring', user)
  if call('ZREM', of_user, id) == 0 then return end
  local first = call('ZRANGE', of_user, 0, 0, 'WITHSCORES')[2]
  if first then call('ZADD', expiring_key, 'GT', first, user) else deadlines.pass_over(user) end
end

-- Whether the user has any.
function deadlines.concerns(user) return call('ZSCORE', expiring_key, user) end

-- Whether the time of a task is over; nil of one that has all of it.
function deadlines.is_over(user, id)
  local at = call('ZSCORE', place_key('expiring', user), id)
  if at then return tonumber(at) <= now end
end

-- ms of the first of all, nil where there is none.
function deadlines.next_ms() return tonumber(call('ZRANGE', expiring_key, 0, 0, 'WITHSCORES')[2] or nil) end

-- Users that have some whose time is over, at most so many.
function deadlines.due(most) return call('ZRANGEBYSCORE', expiring_key, '-inf', now, 'LIMIT', 0, most) end

-- The turn of a user is over.
function deadlines.had_its_turn(user)
  local first = call('ZRANGE', place_key('expiring', user), 0, 0, 'WITHSCORES')[2]
  if first then call('ZADD', expiring_key, math.max(now, first), user) else deadlines.pass_over(user) end
end

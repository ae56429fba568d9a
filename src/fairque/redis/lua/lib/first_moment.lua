-- Users by their first moment, so that one user's many cost the others nothing.
-- all  zset  user → ms of its first moment, or of its last turn where more than that is over
-- own  zset  what one user has → ms
--@include base

-- It had its turn: if it has more that is over, it comes after all those that wait since before now. Returns when that is,
-- or nil where nothing is left.
local function end_turn(all, own, user)
  local first = call('ZRANGE', own, 0, 0, 'WITHSCORES')[2]
  if not first then
    call('ZREM', all, user)
    return nil
  end
  local at = math.max(now, math.floor(first))
  call('ZADD', all, at, user)
  return at
end

-- Returns 1, or 0 where it was not there. One that had its turn stays behind the others.
local function take_moment(all, own, user, member)
  if call('ZREM', own, member) == 0 then return 0 end
  local first = call('ZRANGE', own, 0, 0, 'WITHSCORES')[2]
  if first then call('ZADD', all, 'GT', math.floor(first), user) else call('ZREM', all, user) end
  return 1
end

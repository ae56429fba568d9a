-- Sets of those that are ready, with their tags.
--@include base

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

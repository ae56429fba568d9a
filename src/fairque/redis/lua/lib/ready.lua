-- Lines: sets of those that are ready, with their tags, and hashes that keep the tags of those that are not.
--@include base
--@include state

-- The mean of what services took the members of a line further lately; 0 before the first.
local MEAN_OVER = 32
-- Mean services that one may be owed that was held at its cap, and above the lowest tag to which debts are cut: those
-- that were not made in turn, when their cause is gone; and all, so that tags keep their digits.
local CREDIT, HORIZON, LARGEST_DEBT = 4, 8, 2 ^ 20
local function mean_after(of_line, step)
  if step <= 0 then return of_line end
  return of_line > 0 and of_line + (step - of_line) / MEAN_OVER or step
end

-- `at` where nobody is ready, but for the member that is not meant.
local function lowest_tag(key, at, but)
  local found = call('ZRANGE', key, 0, but and 1 or 0, 'WITHSCORES')
  local score = found[1] == but and found[4] or found[2]
  return score and tonumber(score) or at
end

-- Into a line: at its clock, but not below the lowest tag, and at most half a service above it: its own or the mean.
-- Less than a whole one, so that nobody is served twice before a newcomer; more than nothing, so that newcomers, however
-- many there are, cannot keep the others from becoming the lowest. Never below the tag it left with, but for one that
-- was held at its cap, which gets some of what it is owed. Returns the tag.
-- A sorted set of up to 128 members is a list, in which each change reads the fractions of all the others; one long
-- member turns it into a skip list for as long as it lives.
local LONG_MEMBER = string.rep('-', 65)
local function enter(key, member, own, at, service, of_line, capped)
  local lowest = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if not lowest[2] then call('ZADD', key, 0, LONG_MEMBER) end
  local first = tonumber(lowest[2] or at)
  local entry = first
  if capped then
    entry = first - CREDIT * of_line
  elseif lowest[2] then
    if of_line > 0 then service = math.min(service, of_line) end
    entry = math.max(first, math.min(at, first + service / 2))
  end
  local tag = math.max(own, entry)
  call('ZADD', key, tag, member)
  if not lowest[2] then call('ZREM', key, LONG_MEMBER) end
  return tag
end

-- A tag moves, wherever it is; nothing is made of one that is nowhere, unless there is a number to begin with.
local function move_tag(key, member, hash, change, begin)
  local ready = call('ZSCORE', key, member)
  local tag = ready or call('HGET', hash, 'tag') or begin
  if not tag then return end
  tag = change(tonumber(tag))
  if ready then return call('ZADD', key, tag, member) end
  call('HSET', hash, 'tag', tag)
  call('PEXPIRE', hash, USER_TTL)
end

-- What became known of a service after its start, in shares of the member.
local function move_late(key, member, hash, by, at, of_line)
  move_tag(key, member, hash, function(tag)
    if by <= 0 or of_line == 0 then return tag + by end
    return tag + math.max(0, math.min(by, lowest_tag(key, at) + LARGEST_DEBT * of_line - tag))
  end, 0)
end

-- A weight changed: how far a member is ahead of the lowest is worth so much more, or less.
local function rescale(key, member, hash, factor, at)
  move_tag(key, member, hash, function(tag)
    local low = lowest_tag(key, at)
    return tag > low and low + (tag - low) * factor or tag
  end)
end

-- What a member was served out of turn is held against it no longer, beyond the horizon.
local function forgive(key, member, hash, of_line)
  move_tag(key, member, hash, function(tag) return math.min(tag, lowest_tag(key, tag, member) + HORIZON * of_line) end)
end

-- The lowest member and its tag, of those who do not rest.
local function lowest_in(key, resting)
  local lowest = call('ZRANGE', key, 0, resting.count, 'WITHSCORES')
  for at = 1, #lowest, 2 do
    if not resting.users[lowest[at]] then return lowest[at], tonumber(lowest[at + 1]) end
  end
end

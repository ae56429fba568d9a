-- Between partitions: what the tags of this one are worth beside those of the others. Virtual time goes on elsewhere while
-- nobody is in line here, or while nobody serves this partition: `offset` is added to all its tags where they are compared.
-- In the state: `offset`; `served`, the highest tag at which a service began; `vacant`, when the last claim left nobody ready.
--@include base
--@include state
--@include fair

local function exactly(number) return string.format('%.17g', number) end

local function new_stand()
  local known = call('HMGET', state_key, 'offset', 'served', 'vacant')
  return { offset = tonumber(known[1] or 0), served = tonumber(known[2] or 0), vacant = known[3] ~= '0' }
end

-- The lowest tag of those whom an assignment serves, or nil. Its tree may have one that is too low, until it comes up.
local function lowest_of(name)
  local first, low = lines.lowest(root)
  if not first or name == '*' then return first and low or nil end
  lines.flush(root)
  return tonumber(call('ZRANGE', assignments.tree_key(name, root), 0, 0, 'WITHSCORES')[2] or nil)
end

-- Before all others go those below what is reserved for them. Where nobody is ready and somebody will be as soon as a claim
-- comes, that is told by `is_due`.
local function head_of(names, stand, is_due)
  local head
  for _, name in ipairs(names) do head = head or lowest_of(name) end
  if head and governed and lines.lowest(reservations.line) then return -math.huge end
  if not head and is_due then head = math.max(stand.served, root.clock) end
  return head and head + stand.offset
end

-- As heads.lua returns it.
local function sight_of(names, stand, is_due)
  local head = head_of(names, stand, is_due)
  return { head and exactly(head) or '', exactly(stand.served + stand.offset), exactly(root.mean), lines.size(root) }
end

local function new_between(claim)
  --@fields Claim claim: groups latest floor up_to
  local it, stand = {}, new_stand()
  local EXACT = 1e-12 -- of what is added up, at least: the head of a partition is not beyond itself
  local offset, served, vacant = stand.offset, stand.served, stand.vacant

  -- Who came since nobody was ready came at a time that has passed elsewhere. Who was left alone with a backlog is owed no
  -- more than the horizon.
  function it.catch_up()
    local first, low = lines.lowest(root)
    local target = (vacant or not first) and latest or floor
    stand.offset = math.max(offset, target - (first and low or root.clock))
  end

  -- Up to which tag users are served, or nil.
  function it.last_tag()
    return up_to and up_to - stand.offset + EXACT * math.max(1, math.abs(up_to), math.abs(stand.offset))
  end

  -- Somebody is served at this tag.
  function it.note(tag) stand.served = math.max(stand.served, tag) end

  function it.has_more() return lines.lowest(root) end

  function it.save()
    stand.vacant = not lines.lowest(root)
    if stand.served == served and stand.offset == offset and stand.vacant == vacant then return end
    call('HSET', state_key, 'offset', exactly(stand.offset), 'served', exactly(stand.served), 'vacant', stand.vacant and 1 or 0)
  end

  function it.sight() return sight_of(groups, stand) end

  return it
end

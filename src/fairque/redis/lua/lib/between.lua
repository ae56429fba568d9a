-- Between partitions. Tags and clock of one are its own; `offset` is added where they are compared with those of others.
-- In the state:
--   offset     grows where the partition was away while its users waited: all of them are brought forward by it
--   elsewhere  the virtual time of the queue as it is known here, in that of the partition: who comes enters there
--   low        the lowest tag when the last claim was done; none where nobody was ready
--@include base
--@include state
--@include fair

local function exactly(number) return string.format('%.17g', number) end

local function new_stand()
  return { offset = tonumber(of_queue.offset or 0), low = tonumber(of_queue.low), moves = of_queue.moves }
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
  if not head and is_due then head = root.elsewhere or root.clock end
  return head and head + stand.offset
end

-- Whether somebody moves, and its mover fell silent: lib/moves.lua.
local function has_forsaken(stand)
  local first = stand.moves and call('ZRANGE', prefix .. 'moves', 0, 0, 'WITHSCORES')[2]
  return first and tonumber(first) <= now and 1 or 0
end

-- Ms until something of limits over all users is to be asked of another partition, or told there; -1: nothing.
local function next_exchange()
  local first = has_limits and call('ZRANGE', prefix .. 'exchanges', 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, math.floor(first) - now) or -1
end

-- As heads.lua returns it.
local function sight_of(names, stand, is_due)
  local head, time_now = head_of(names, stand, is_due), (root.elsewhere or 0) + stand.offset
  local workers = call('ZCARD', prefix .. 'workers')
  local passed = exactly(root.clock + stand.offset)
  return { head and exactly(head) or '', exactly(time_now), exactly(root.mean), lines.size(root), workers, passed,
    has_forsaken(stand), next_exchange(), revision_known }
end

local function new_between(claim, is_for_all)
  --@fields Claim claim: groups latest floor up_to
  local it, stand = {}, new_stand()
  local EXACT = 1e-12 -- of what is added up, at least: the head of a partition is not beyond itself
  local offset, low, entered_at = stand.offset, stand.low, root.elsewhere or 0
  local lift_below, lifted, is_cut, known = -math.huge, {}, false, root.elsewhere

  -- Who waited here while nobody served this partition is owed no more than the horizon. Who came since the last claim
  -- came at a time that may have passed elsewhere: no tag of those who had been here is below `low`.
  function it.catch_up()
    if low then stand.offset = math.max(offset, floor - low) end
    root.elsewhere = math.max(entered_at, latest - stand.offset)
    lift_below = low and math.min(low, root.elsewhere) or root.elsewhere
  end

  -- Its turn would come too soon: it moves to where it would have come, had the time been known.
  function it.lift(member)
    local tag = lines.tag(root, member)
    if tag >= lift_below or lifted[member] then return false end
    lifted[member] = true
    lines.set(root, member, root.elsewhere + math.min(tag - entered_at, root.mean / 2))
    return true
  end

  -- Some who came are left to the next claim.
  function it.cut() is_cut = true end

  -- Up to which tag users are served, or nil.
  function it.last_tag()
    return up_to and up_to - stand.offset + EXACT * math.max(1, math.abs(up_to), math.abs(stand.offset))
  end

  function it.has_more() return lines.lowest(root) end

  -- Where newcomers were not lifted, those who had been here are at `low` or above.
  local function low_by_now()
    local first, lowest = lines.lowest(root)
    if is_for_all and not is_cut then return first and lowest or nil end
    return low and first and math.max(low, lowest) or low
  end

  function it.save()
    stand.low = low_by_now()
    if stand.low ~= low then
      if stand.low then call('HSET', state_key, 'low', exactly(stand.low)) else call('HDEL', state_key, 'low') end
    end
    if root.elsewhere ~= known or stand.offset ~= offset then
      call('HSET', state_key, 'offset', exactly(stand.offset), 'elsewhere', exactly(root.elsewhere or 0))
    end
  end

  function it.sight() return sight_of(groups, stand) end

  return it
end

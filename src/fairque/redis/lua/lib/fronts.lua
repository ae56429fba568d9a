-- The front of a line: its lowest members, read at once and kept in order by tag, then name, while a call serves them. Tags in
-- it may be too low, never too high: they are mended when they come up.

-- resting, idle: members, and how many, that have to wait until all others had their turn. head, tail: places in tags and
-- names. tree: the key to read from, with the assignment that it belongs to; moved: what is to be written there.
function fronts.new(line, most, resting, idle)
  return {
    line = line, most = most, resting = resting, idle = idle, key = line.key,
    tags = {}, names = {}, head = 1, tail = 0, is_whole = false,
  }
end

function fronts.of_tree(name, line, most, resting, idle)
  local front = fronts.new(line, most, resting, idle)
  front.key, front.moved = assignments.tree_key(name, line), {}
  return front
end

local function rests(front, name)
  return front.resting and (front.resting.members[name] or front.idle.members[name])
end

-- Behind all that are lower, mostly at the end or near to it.
local function insert(front, name, tag, first)
  local tags, names, at = front.tags, front.names, front.tail
  while at >= first and (tags[at] > tag or (tags[at] == tag and names[at] > name)) do
    tags[at + 1], names[at + 1] = tags[at], names[at]
    at = at - 1
  end
  tags[at + 1], names[at + 1] = tag, name
  front.tail = front.tail + 1
end

-- Its tree may be behind: who is not in the line any more, and who has come further, is mended there.
local function mend(front, found)
  local line, unknown = front.line, {}
  for at = 1, #found, 2 do
    if line.tags[found[at]] == nil then unknown[#unknown + 1] = found[at] end
  end
  if #unknown > 0 then
    for at, tag in ipairs(call('ZMSCORE', line.key, unpack(unknown))) do line.tags[unknown[at]] = tonumber(tag or nil) or false end
  end
  for at = 1, #found, 2 do
    local tag = line.tags[found[at]]
    if tag ~= tonumber(found[at + 1]) then front.moved[found[at]] = true end
  end
end

function fronts.fill(front)
  local line = front.line
  lines.flush(line)
  if front.moved then fronts.close(front) end
  local most = front.most + (front.resting and front.resting.count + front.idle.count or 0)
  local found = call('ZRANGE', front.key, 0, most - 1, 'WITHSCORES')
  front.tags, front.names, front.head, front.tail = {}, {}, 1, 0
  front.is_whole, front.most = #found < 2 * most, front.most * 4
  front.last_name, front.last_tag = found[#found - 1], tonumber(found[#found])
  if front.moved then
    mend(front, found)
  elseif front.is_whole then
    line.size = #found / 2
  end
  local tags, names, known, tail = front.tags, front.names, line.tags, 0
  for at = 1, #found, 2 do
    local name = found[at]
    if not front.moved then
      tail = tail + 1
      known[name] = tonumber(found[at + 1])
      tags[tail], names[tail], front.tail = known[name], name, tail
    elseif known[name] then
      insert(front, name, known[name], 1)
    end
  end
  nodes.read_ahead(names)
end

-- The lowest member that does not rest, or nil.
function fronts.first(front)
  local known = front.line.tags
  while true do
    local head = front.head
    if head > front.tail then
      if front.is_whole then return nil end
      fronts.fill(front)
    else
      local name, tag = front.names[head], front.tags[head]
      local is_in = known[name]
      if is_in == tag and not rests(front, name) then
        if front.is_whole or tag < front.last_tag or (tag == front.last_tag and name <= front.last_name) then return name end
        fronts.fill(front)
      else
        if front.moved and is_in ~= tag then front.moved[name] = true end
        front.head = head + 1
        if is_in and is_in ~= tag then insert(front, name, is_in, head + 1) end
      end
    end
  end
end

-- Writes what is known into the tree.
function fronts.close(front)
  local up, gone, known = {}, {}, front.line.tags
  for name in pairs(front.moved) do
    if known[name] then
      up[#up + 1] = known[name]
      up[#up + 1] = name
    else
      gone[#gone + 1] = name
    end
  end
  if #up > 0 then call('ZADD', front.key, 'XX', unpack(up)) end
  if #gone > 0 then call('ZREM', front.key, unpack(gone)) end
  front.moved = {}
end

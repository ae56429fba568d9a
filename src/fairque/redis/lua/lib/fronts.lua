-- The front of a line: its lowest members, read at once and kept in order while a call serves them. A heap by tag, then
-- name. Tags in it may be too low, never too high: they are mended when they come up.
--@include base
--@include lines

-- resting: members, and how many, that have to wait until all others had their turn.
local function new_front(line, resting, most)
  return { line = line, resting = resting, most = most, size = 0, tags = {}, names = {}, is_whole = false }
end

local function sink(front)
  local tags, names, size, at = front.tags, front.names, front.size, 1
  local tag, name = tags[1], names[1]
  while true do
    local child = at * 2
    if child > size then break end
    local other = child + 1
    if other <= size and (tags[other] < tags[child] or (tags[other] == tags[child] and names[other] < names[child])) then
      child = other
    end
    local below = tags[child]
    if tag < below or (tag == below and name <= names[child]) then break end
    tags[at], names[at] = below, names[child]
    at = child
  end
  tags[at], names[at] = tag, name
end

-- In order, they are a heap.
local function fill(front)
  local line, resting = front.line, front.resting
  flush(line)
  local most = front.most + resting.count
  local found = call('ZRANGE', line.key, 0, most - 1, 'WITHSCORES')
  local tags, names, known, size = {}, {}, line.tags, 0
  for at = 1, #found, 2 do
    local name, tag = found[at], tonumber(found[at + 1])
    known[name] = tag
    if not resting[name] then
      size = size + 1
      tags[size], names[size] = tag, name
    end
  end
  front.tags, front.names, front.size = tags, names, size
  front.is_whole = #found < 2 * most
  front.last_name, front.last_tag = found[#found - 1], known[found[#found - 1]]
  front.most = front.most * 4
  if front.is_whole then line.size = #found / 2 end
end

-- The lowest member that does not rest, or nil.
local function first_of(front)
  local resting, known = front.resting, front.line.tags
  while true do
    if front.size == 0 then
      if front.is_whole then return nil end
      fill(front)
    else
      local name, tag = front.names[1], front.tags[1]
      local is_in = not resting[name] and known[name]
      if is_in and is_in == tag then
        if front.is_whole or tag < front.last_tag or (tag == front.last_tag and name <= front.last_name) then return name end
        fill(front)
      elseif is_in then
        front.tags[1] = is_in
        sink(front)
      else
        front.names[1], front.tags[1] = front.names[front.size], front.tags[front.size]
        front.size = front.size - 1
        if front.size > 1 then sink(front) end
      end
    end
  end
end

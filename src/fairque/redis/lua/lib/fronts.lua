-- The front of a line: its lowest members, read at once and kept in order by tag, then name, while a call serves them. Tags in
-- it may be too low, never too high: they are mended when they come up.

-- resting: members, and how many, that have to wait until all others had their turn. head, tail: places in tags and names.
function fronts.new(line, resting, most)
  return { line = line, resting = resting, most = most, tags = {}, names = {}, head = 1, tail = 0, is_whole = false }
end

-- The first member has another tag: mostly it goes to the end, or near to it.
function fronts.move_first(front, tag)
  local tags, names, at = front.tags, front.names, front.tail
  local name, first = names[front.head], front.head + 1
  while at >= first and (tags[at] > tag or (tags[at] == tag and names[at] > name)) do
    tags[at + 1], names[at + 1] = tags[at], names[at]
    at = at - 1
  end
  tags[at + 1], names[at + 1] = tag, name
  front.head, front.tail = first, front.tail + 1
end

function fronts.fill(front)
  local line, resting, most = front.line, front.resting, front.most + front.resting.count
  lines.flush(line)
  local found = call('ZRANGE', line.key, 0, most - 1, 'WITHSCORES')
  local tags, names, known, tail = {}, {}, line.tags, 0
  for at = 1, #found, 2 do
    local name, tag = found[at], tonumber(found[at + 1])
    known[name] = tag
    if not resting[name] then
      tail = tail + 1
      tags[tail], names[tail] = tag, name
    end
  end
  front.tags, front.names, front.head, front.tail = tags, names, 1, tail
  front.is_whole = #found < 2 * most
  front.last_name, front.last_tag = found[#found - 1], known[found[#found - 1]]
  front.most = front.most * 4
  if front.is_whole then line.size = #found / 2 end
end

-- The lowest member that does not rest, or nil.
function fronts.first(front)
  local resting, known = front.resting, front.line.tags
  while true do
    local head = front.head
    if head > front.tail then
      if front.is_whole then return nil end
      fronts.fill(front)
    else
      local name, tag = front.names[head], front.tags[head]
      local is_in = not resting[name] and known[name]
      if not is_in then
        front.head = head + 1
      elseif is_in ~= tag then
        fronts.move_first(front, is_in)
      elseif front.is_whole or tag < front.last_tag or (tag == front.last_tag and name <= front.last_name) then
        return name
      else
        fronts.fill(front)
      end
    end
  end
end

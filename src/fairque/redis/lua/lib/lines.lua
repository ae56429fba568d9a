-- Lines: those that may be served now, with their tags. The members of a line are users, and '@<path>' for a group that
-- shares in it. A call changes them in its memory, and writes each line back at once.
-- ready, ready:<path>  zset  member → tag
-- left, left:<path>    zset  members that left → the tag they left with, until the lowest has passed it
-- group:<path>         hash  clock, mean and weight of a group; `capped`: the tag at which it is held

-- The mean of what services took the members of a line further lately; 0 before the first.
--@once
lines.MEAN_OVER = 32
-- Mean services that one may be owed that was held at its cap, and above the lowest tag to which debts are cut: those
-- that were not made in turn, when their cause is gone; and all, so that tags keep their digits.
--@once
lines.CREDIT, lines.HORIZON, lines.LARGEST_DEBT = 4, 8, 2 ^ 20
function lines.mean_after(of_line, step)
  if step <= 0 then return of_line end
  return of_line > 0 and of_line + (step - of_line) / lines.MEAN_OVER or step
end

-- tags: what is known of members, false of those that are not in; moved: those to be written. first, low: the lowest
-- member and its tag, false where nobody is in, nil where it is not known. kept: own tags; leaving: those to be written.
function lines.new(line, base, key, left_key)
  line.base, line.key, line.left_key = base, key, left_key
  line.tags, line.moved, line.kept, line.leaving, line.lowered = {}, {}, {}, {}, {}
  return line
end
lines.new(root, 'ready', ready_key, prefix .. 'left')
lines.by_path = {}

function lines.at(path)
  local line = lines.by_path[path]
  if line then return line end
  local outer = string.match(path, '^(.*)/')
  line = { path = path, member = '@' .. path, hash = prefix .. 'group:' .. path, up = outer and lines.at(outer) or root }
  local found = call('HMGET', line.hash, 'clock', 'mean', 'weight', 'capped')
  line.clock, line.mean, line.capped = tonumber(found[1] or 0), tonumber(found[2] or 0), tonumber(found[4] or nil)
  line.weight = tonumber(found[3] or read_policy(line.member).weight or 1)
  lines.by_path[path] = lines.new(line, 'ready', prefix .. 'ready:' .. path, prefix .. 'left:' .. path)
  return line
end

-- A sorted set of up to 128 members is a list, in which each change reads the fractions of all the others; one long
-- member turns it into a skip list for as long as it lives.
local long_member = string.rep('-', 65)
local MANY_AT_ONCE = 8
function lines.write_moves(line)
  local put, gone = {}, {}
  for member in pairs(line.moved) do
    local tag = line.tags[member]
    if tag then
      put[#put + 1] = tag
      put[#put + 1] = member
    else
      gone[#gone + 1] = member
    end
  end
  if #put > 0 and line.was_empty then
    put[#put + 1], put[#put + 2], gone[#gone + 1] = 0, long_member, long_member
    line.was_empty = false
  end
  if #put > 0 then call('ZADD', line.key, unpack(put)) end
  if #gone > 0 then call('ZREM', line.key, unpack(gone)) end
  line.moved = {}
  if next(line.lowered) then assignments.lower(line) end
end

function lines.flush(line)
  if next(line.moved) then lines.write_moves(line) end
end

function lines.tag(line, member)
  local tag = line.tags[member]
  if tag == nil then
    tag = line.first ~= false and tonumber(call('ZSCORE', line.key, member) or nil) or false
    line.tags[member] = tag
  end
  return tag
end

-- How many are in it.
function lines.size(line)
  if not line.size then
    lines.flush(line)
    line.size = call('ZCARD', line.key)
  end
  return line.size
end

-- The lowest member and its tag, false where nobody is in.
function lines.lowest(line)
  if line.first == nil then
    lines.flush(line)
    local found = call('ZRANGE', line.key, 0, 0, 'WITHSCORES')
    line.first, line.low = found[1] or false, tonumber(found[2])
    if found[1] then line.tags[found[1]] = line.low else line.was_empty, line.size = true, 0 end
  end
  return line.first, line.low
end

function lines.low(line) return lines.lowest(line) and line.low or line.clock end

-- Who enters now enters there or above.
local function least_entry(line)
  return line.elsewhere and math.min(lines.low(line), line.elsewhere) or lines.low(line)
end

-- Its tag is known, as `tag` found it.
function lines.set(line, member, tag)
  if has_assigned and (not line.tags[member] or tag < line.tags[member]) then
    assignments.of(member) -- will be needed: what is broken of it shows here
    line.lowered[member] = true
  end
  if line.size and not line.tags[member] then line.size = line.size + 1 end
  line.tags[member], line.moved[member] = tag, true
  if line.first == nil then return end
  if line.first == false or tag < line.low then
    line.first, line.low = member, tag
  elseif member == line.first and tag > line.low then
    line.first = nil
  end
end

function lines.remove(line, member)
  line.size = lines.size(line) - 1
  line.tags[member], line.moved[member] = false, true
  if line.size == 0 then
    line.first = false
  elseif line.first == member then
    line.first = nil
  end
end

-- The tag that a member left with, if it is still known.
function lines.own_tag(line, member)
  local tag = line.kept[member]
  if tag == nil then
    tag = tonumber(call('ZSCORE', line.left_key, member) or nil) or false
    line.kept[member] = tag
  end
  return tag
end

function lines.keep(line, member, tag)
  line.kept[member], line.leaving[member] = tag, true
end

-- What is known of many members, by two reads.
function lines.learn(line, members)
  local tags = line.first ~= false and call('ZMSCORE', line.key, unpack(members)) or {}
  local kept = call('ZMSCORE', line.left_key, unpack(members))
  for at, member in ipairs(members) do
    if line.tags[member] == nil then line.tags[member] = tonumber(tags[at] or nil) or false end
    if line.kept[member] == nil then line.kept[member] = tonumber(kept[at] or nil) or false end
  end
end

-- Own tags that the lowest has passed are of no consequence: as many as came, and some more. Where many come at once it
-- becomes a skip list, as in `write_moves`.
function lines.write_own_tags(line)
  local put_in, came = {}, 0
  for member in pairs(line.leaving) do
    came = came + 1
    put_in[came * 2 - 1], put_in[came * 2] = line.kept[member], member
  end
  line.leaving = {}
  local are_many = came >= MANY_AT_ONCE
  if are_many then put_in[came * 2 + 1], put_in[came * 2 + 2] = 0, long_member end
  call('ZADD', line.left_key, unpack(put_in))
  call('PEXPIRE', line.left_key, USER_TTL)
  local passed = call('ZRANGEBYSCORE', line.left_key, '-inf', least_entry(line), 'LIMIT', 0, 2 * came + 20)
  if are_many then passed[#passed + 1] = long_member end
  if #passed > 0 then call('ZREM', line.left_key, unpack(passed)) end
  if has_assigned then assignments.cut_own_tags(line) end
end

-- What a group is known by is kept for a week after the last of its users.
function lines.write_group(line)
  local is_empty = lines.size(line) == 0
  if line.is_changed then call('HSET', line.hash, 'clock', line.clock, 'mean', line.mean, 'weight', line.weight) end
  if is_empty then
    call('PEXPIRE', line.hash, USER_TTL)
  elseif line.was_joined then
    call('PERSIST', line.hash)
  end
  line.is_changed, line.was_joined = false, false
end

function save_lines()
  for _, line in pairs(lines.by_path) do
    lines.flush(line)
    if next(line.leaving) then lines.write_own_tags(line) end
    if line.is_changed then lines.write_group(line) end
  end
  lines.flush(root)
  if next(root.leaving) then lines.write_own_tags(root) end
end

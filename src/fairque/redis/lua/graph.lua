#!lua flags=no-writes
-- What hangs on a task: those it depends on, those that depend on it, children and parents, and on from these.
-- KEYS[1]  state
-- Returns  {1 where there is more, tasks, each {id, state or '', name}, the first one asked about, links, each {position of
--          the one that goes before, position of the other, 'dependency' or 'child'}}
-- Cost     O(tasks + links), at most 100 links of a task in each direction, and 10 of all for each task that is asked for
--@include base
--@include moved
--@include standing
--@include message
--@arguments
refuse_moved(user)
local MOST_LINKS = 100
local tasks, position, links, linked, is_part = {}, {}, {}, {}, 0
local left = 10 * most + MOST_LINKS

-- Of the body, or once that is gone of the record.
local function name_of(of)
  local head = redis.pcall('GETRANGE', body_key(user, of), 0, LONGEST_HEAD)
  local name = type(head) == 'string' and name_in(head) or ''
  if name ~= '' then return name end
  local record = redis.pcall('GETRANGE', result_key(user, of), 0, LONGEST_HEAD)
  local is_read, _, told = pcall(cmsgpack.unpack_limit, record, 1, 11)
  return is_read and type(told) == 'string' and told or ''
end

-- Its position, nil where there is no room for another one.
local function note(of)
  if position[of] then return position[of] end
  if #tasks == most then
    is_part = 1
    return nil
  end
  tasks[#tasks + 1] = { of, standing_of(user, of), name_of(of) }
  position[of] = #tasks
  return #tasks
end

local function link(before, after, kind)
  local one, other = note(before), note(after)
  if not one or not other or linked[one .. ' ' .. other] then return end
  linked[one .. ' ' .. other] = true
  links[#links + 1] = { one, other, kind }
end

local function members(key)
  local count = math.min(MOST_LINKS, left)
  local found = count > 0 and call('SRANDMEMBER', key, count) or {}
  left = left - #found
  if #found == count then is_part = 1 end
  table.sort(found)
  return found
end

local function look_around(of)
  for _, need in ipairs(members(needs_key(user, of))) do link(need, of, 'dependency') end
  for _, used in ipairs(members(uses_key(user, of))) do link(used, of, 'dependency') end
  for _, fed in ipairs(members(feeds_key(user, of))) do
    local is_child = call('SISMEMBER', children_key(user, of), fed) == 1
    link(of, fed, is_child and 'child' or 'dependency')
  end
  for _, child in ipairs(members(children_key(user, of))) do link(of, child, 'child') end
  local parent = call('HGET', task_key(user, of), 'parent')
  if parent and standing_of(user, parent) ~= '' then link(parent, of, 'child') end
end

note(id)
local at = 1
while tasks[at] do
  look_around(tasks[at][1])
  at = at + 1
end
return { is_part, tasks, links }

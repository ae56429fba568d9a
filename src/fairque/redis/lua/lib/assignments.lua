-- Assignments: lists of users that workers serve, by the name that their client made of the list; '*' is everybody. A queue
-- whose workers all serve everybody pays for a look at `assigned`.
-- assignments         zset  names → ms of the last sign of life of one of their workers
-- assignment:<a>      set   the users
-- assignments:<u>     set   the assignments of a user; of '@<path>', those in whose trees the group stands
-- workers@<a>         set   the workers that serve it
-- ready@<a>, ready@<a>:<path>, reserved@<a>  zset  its tree: the lines with its users alone. A tag there is never above the
--                           true one, and who is not in line any more may still be there: both are mended when they come up
-- leases@<a>          zset  the same of `leases`
-- assignments-ended   set   those whose users are still to be released

local SILENT_MS, TOUCH_MS, RELEASED, KEPT_TAGS = 60000, 1000, 100, 10000
local names_key, ended_key = prefix .. 'assignments', prefix .. 'assignments-ended'
local of_member, seen, lows = {}, {}, {}

local function users_key_of(name) return prefix .. 'assignment:' .. name end
local function of_key(member) return prefix .. 'assignments:' .. member end

function assignments.tree_key(name, line)
  return prefix .. line.base .. '@' .. name .. (line.path and ':' .. line.path or '')
end

-- Names, '*' not among them.
function assignments.of(member)
  local names = of_member[member]
  if not names then
    names = call('SMEMBERS', of_key(member))
    of_member[member] = names
  end
  return names
end

function assignments.lives(name)
  if seen[name] == nil then seen[name] = tonumber(call('ZSCORE', names_key, name) or 0) end
  return seen[name] > now - SILENT_MS
end

local function has_live(names)
  for _, name in ipairs(names) do
    if assignments.lives(name) then return true end
  end
  return false
end

-- Whether some live worker may serve the user.
function assignments.serve(user) return assignments.lives('*') or has_live(assignments.of(user)) end

-- Those of a line that went down or came in.
function assignments.lower(line)
  local of_tree = {}
  for member in pairs(line.lowered) do
    for _, name in ipairs(line.tags[member] and assignments.of(member) or {}) do
      local scored = of_tree[name] or { 'LT' }
      scored[#scored + 1], scored[#scored + 2], of_tree[name] = line.tags[member], member, scored
    end
  end
  line.lowered = {}
  for name, scored in pairs(of_tree) do call('ZADD', assignments.tree_key(name, line), unpack(scored)) end
end

-- The groups of a user that is in line stand in the trees as well.
local function enter_groups(u, name)
  local node = u.up
  while node.up do
    if call('SADD', of_key(node.member), name) == 1 then of_member[node.member] = nil end
    call('ZADD', assignments.tree_key(name, node.up), 'LT', lines.tag(node.up, node.member), node.member)
    node = node.up
  end
end

function assignments.enter(u)
  for _, name in ipairs(assignments.of(u.name)) do
    if u.up ~= root then enter_groups(u, name) end
    local node = u
    while node.up do
      local of_line, tag = lows[node.up], lines.tag(node.up, node.member)
      if of_line and of_line[name] ~= nil then of_line[name] = math.min(of_line[name] or tag, tag) end
      node = node.up
    end
  end
end

-- Services were charged.
function assignments.forget_lows() lows = {} end

function assignments.remove_group(name, line)
  call('ZREM', assignments.tree_key(name, line.up), line.member)
  call('SREM', of_key(line.member), name)
  of_member[line.member] = nil
end

-- The user goes to another group.
function assignments.withdraw(u)
  for _, name in ipairs(assignments.of(u.name)) do
    local line, member = u.up, u.name
    call('ZREM', assignments.tree_key(name, line), member)
    while line.up and call('EXISTS', assignments.tree_key(name, line)) == 0 do
      assignments.remove_group(name, line)
      line = line.up
    end
  end
end

-- The lowest tag in the tree of an assignment, or false.
local function low_in(name, line)
  local of_line = lows[line] or {}
  lows[line] = of_line
  if of_line[name] == nil then
    local front = fronts.of_tree(name, line, 2)
    local first = fronts.first(front)
    fronts.close(front)
    of_line[name] = first and line.tags[first] or false
  end
  return of_line[name]
end

-- What those who are served have come to in a line: the lowest tag of all trees in it. False where nobody is.
local function low_of_served(line)
  local low = false
  for _, name in ipairs(call('ZRANGEBYSCORE', names_key, '(' .. now - SILENT_MS, '+inf')) do
    local of_tree = name ~= '*' and low_in(name, line)
    if of_tree and (not low or of_tree < low) then low = of_tree end
  end
  return low
end

local function raise_to(node, low)
  local line = node.up
  local tag, least = lines.tag(line, node.member), low - lines.CREDIT * line.mean
  if not tag or tag >= least then return false end
  lines.set(line, node.member, least)
  return true
end

-- '*' came back: who was served by nobody meanwhile is owed as little as one that was at its cap. Returns whether its tag
-- changed.
function assignments.raise(node)
  if has_live(assignments.of(node.member)) then return false end
  local low = low_of_served(node.up)
  return low and raise_to(node, low)
end

-- The lowest member, and its tag, among which a user enters a line: the highest of the assignments that have it. By the
-- lower one it would pass those whom the other one serves.
function assignments.lowest(u, line)
  local first, low = false, nil
  if assignments.lives('*') then
    first, low = lines.lowest(line)
    local served = first and has_returned and low_of_served(line)
    if served then low = math.max(low, served - lines.CREDIT * line.mean) end
  end
  for _, name in ipairs(assignments.of(u.name)) do
    local of_tree = assignments.lives(name) and low_in(name, line)
    if of_tree and (not first or of_tree > low) then first, low = true, of_tree end
  end
  return first, low
end

local function touch(name)
  call('ZADD', names_key, now, name)
  seen[name] = now
end

-- The users of a list that is new, those that are in line with the lowest tags among those that were served before.
local function put_in_tree(name, us)
  local served, low = {}, {}
  for _, u in ipairs(us) do
    local node = u
    while node.up and lines.tag(node.up, node.member) do
      local line, tag = node.up, lines.tag(node.up, node.member)
      served[node] = assignments.lives('*') or has_live(assignments.of(node.member))
      if served[node] then low[line] = math.min(low[line] or math.huge, tag) end
      node = line
    end
  end
  for node, was_served in pairs(served) do
    if not was_served and low[node.up] then raise_to(node, low[node.up]) end
  end
end

local function copy_leases(name, users)
  local members, found = {}, {}
  for at, user in ipairs(users) do members[at * 2 - 1], members[at * 2] = 'critical:' .. user, 'normal:' .. user end
  for at, look in ipairs(call('ZMSCORE', leases_key, unpack(members))) do
    if look then
      found[#found + 1] = look
      found[#found + 1] = members[at]
    end
  end
  if #found > 0 then call('ZADD', prefix .. 'leases@' .. name, unpack(found)) end
end

local function register(name, users)
  local us = {}
  call('SREM', ended_key, name)
  call('SADD', users_key_of(name), unpack(users))
  for at, user in ipairs(users) do us[at] = nodes.user(user) end
  put_in_tree(name, us)
  for _, u in ipairs(us) do
    call('SADD', of_key(u.name), name)
    of_member[u.name] = nil
    local tag = nodes.is_ready(u)
    if tag then
      call('ZADD', assignments.tree_key(name, u.up), tag, u.name)
      enter_groups(u, name)
      local first = governed and lines.tag(reservations.line, u.name)
      if first then call('ZADD', assignments.tree_key(name, reservations.line), first, u.name) end
    end
  end
  copy_leases(name, users)
  call('HINCRBY', state_key, 'assigned', 1)
end

-- A claim by a worker. False: the list must be sent. The first step of all that is written.
function assignments.note(name, users, worker)
  local at = tonumber(call('ZSCORE', names_key, name) or nil)
  if name == '*' then
    local was_away = (at or 0) <= now - SILENT_MS
    if not at or at < now - TOUCH_MS then
      touch(name)
      assignments.tidy()
    end
    if was_away and call('ZCOUNT', names_key, '(' .. now - SILENT_MS, '+inf') > 1 then assignments.begin_return() end
    return true
  end
  if not at and not users then return false end
  if not at then
    if not has_assigned then touch('*') end -- those that serve everybody were not noted so far
    has_assigned = true
    register(name, users)
  end
  if call('SADD', prefix .. 'workers@' .. name, worker) == 1 or not at or at < now - TOUCH_MS then
    touch(name)
    assignments.tidy()
  end
  return true
end

function assignments.begin_return()
  has_returned = true
  call('HSET', state_key, 'returning', 1)
  call('DEL', prefix .. 'sweep-lines')
  call('RPUSH', prefix .. 'sweep-lines', '0 ')
end

-- The assignment ends: nobody wakes its workers, and its users are released by steps.
function assignments.finish(name)
  if call('ZREM', names_key, name) == 0 then return end
  seen[name] = nil
  call('SADD', ended_key, name)
  call('UNLINK', prefix .. 'workers@' .. name, prefix .. 'waiting:' .. name, prefix .. 'leases@' .. name,
    prefix .. 'ready@' .. name, prefix .. 'reserved@' .. name)
  call('HINCRBY', state_key, 'assigned', -1)
end

local function release(name, user)
  local u = nodes.user(user)
  choice.know(user)
  if governed then gates.running(u) end
  call('SREM', of_key(user), name)
  of_member[user] = nil
  local line = u.up
  while line.up do
    call('UNLINK', assignments.tree_key(name, line))
    assignments.remove_group(name, line)
    line = line.up
  end
  choice.forgive(u)
end

-- Those for whom something fails stay, and are noted; returns how many do not, the first ones of the list from then on.
local function release_all(name, users)
  local released = 0
  for at, user in ipairs(users) do
    local is_done, failure = pcall(release, name, user)
    if is_done then
      released = released + 1
      users[at], users[released] = users[released], user
    else
      damage().note(user, failure)
    end
  end
  return released
end

local function release_some()
  local left = RELEASED
  while left > 0 do
    local name = call('SRANDMEMBER', ended_key)
    if not name then break end
    local users = call('SRANDMEMBER', users_key_of(name), left)
    local released = release_all(name, users)
    if released > 0 then call('SREM', users_key_of(name), unpack(users, 1, released)) end
    left = left - #users - 1
    if call('EXISTS', users_key_of(name)) == 0 then call('SREM', ended_key, name) end
  end
  lows = {}
end

-- Assignments that gave no sign of life end; those that ended release some of their users.
function assignments.tidy()
  local oldest = call('ZRANGEBYSCORE', names_key, '-inf', now - SILENT_MS, 'LIMIT', 0, 1)[1]
  if oldest == '*' then
    call('ZREM', names_key, '*')
  elseif oldest then
    assignments.finish(oldest)
  end
  release_some()
  if call('HGET', state_key, 'assigned') == '0' and call('EXISTS', ended_key) == 0 then
    call('HDEL', state_key, 'assigned', 'returning')
    call('DEL', names_key)
  end
end

-- A worker says goodbye.
function assignments.leave(name, worker)
  call('SREM', prefix .. 'workers@' .. name, worker)
  if name ~= '*' and call('EXISTS', prefix .. 'workers@' .. name) == 0 then assignments.finish(name) end
end

-- Where nobody of `*` is served, the lowest tag may stay where it is: of own tags only so many are kept.
function assignments.cut_own_tags(line)
  local many = call('ZCARD', line.left_key) - KEPT_TAGS
  if many > 0 then call('ZREMRANGEBYRANK', line.left_key, 0, math.min(many, RELEASED) - 1) end
end

-- A lane of a user got its first delivery.
function assignments.note_lease(member, user, at)
  for _, name in ipairs(assignments.of(user)) do call('ZADD', prefix .. 'leases@' .. name, 'LT', at, member) end
end

-- The lanes of an assignment whose looks are in a range, at most so many, and when it is for the next one.
function assignments.lanes(name, from, to, most)
  local key = prefix .. 'leases@' .. name
  local members = call('ZRANGEBYSCORE', key, from, to, 'LIMIT', 0, most)
  local due = {}
  for at, look in ipairs(#members > 0 and call('ZMSCORE', leases_key, unpack(members)) or {}) do
    if not look then
      call('ZREM', key, members[at])
    elseif tonumber(look) > tonumber(to) then
      call('ZADD', key, look, members[at])
    else
      due[#due + 1] = members[at]
    end
  end
  return due
end

function assignments.next_look(name)
  return tonumber(call('ZRANGE', prefix .. 'leases@' .. name, 0, 0, 'WITHSCORES')[2] or math.huge)
end

-- Nodes: users, and the groups in which they stand. A node is a member of the line `up`, with a weight; the node of a group
-- is the line of its users. What is done to a user is done to each node above it.
-- user:<u>  hash  `weight`: what its tag was counted with, where that is not 1; `capped`: the tag at which it is held

local PLAIN = {} -- the policy of everybody in a queue that has none
nodes.known, nodes.everybody = {}, nil -- users in this call; the policy of everybody
local inherited
function nodes.read_policies()
  nodes.known, nodes.everybody = {}, read_policy('*')
  inherited = { __index = nodes.everybody }
end

function nodes.user(name)
  local u = nodes.known[name]
  if u then return u end
  local policy = nodes.everybody and setmetatable(read_policy(name), inherited) or PLAIN
  local line = policy.group and lines.at(policy.group) or root
  u = { name = name, member = name, policy = policy, weight = policy.weight or 1, up = line, served = false }
  nodes.known[name] = u
  return u
end

-- Many users are looked at next.
function nodes.read_ahead(names)
  if not nodes.everybody then return end
  local users = {}
  for _, name in ipairs(names) do
    if not nodes.known[name] and string.byte(name) ~= 64 then users[#users + 1] = name end -- '@' begins a group
  end
  if users[2] then read_policies_ahead(users) end
end

-- What is kept of a user beside its tag, read once.
function nodes.marks(u)
  if u.tat or not (nodes.everybody or has_weights) then return u end
  local marks = call('HMGET', user_key(u.name), 'tat', 'tat_of', 'open_until', 'capped', 'weight')
  u.tat, u.open_until = rate_tat(marks[1], marks[2], u.policy.rate_us), tonumber(marks[3] or 0)
  u.capped, u.counted = tonumber(marks[4] or nil), tonumber(marks[5] or 1)
  return u
end

-- By its policy, or as it was counted last: a weight that was taken back is counted until its turn.
local function is_weighted(u) return u.weight ~= 1 or has_weights and nodes.marks(u).counted ~= 1 end

-- Whoever is busy leaves now and then, which gives the hash a time to live; what its weight was must not be forgotten
-- while it stands in a line.
function nodes.remember(u, ...)
  if call('HSET', user_key(u.name), ...) > 0 and not is_weighted(u) then call('PEXPIRE', user_key(u.name), USER_TTL) end
end

function nodes.is_ready(u) return lines.tag(u.up, u.member) end

-- At what tag a node is held at its cap; nil where it is not.
function nodes.cap_of(node)
  if node.path then return node.capped end
  return nodes.marks(node).capped
end

function nodes.set_cap(node, tag)
  local key = node.hash or user_key(node.name)
  node.capped = tag
  if tag then
    call('HSET', key, 'capped', tag)
    call('PEXPIRE', key, USER_TTL)
  else
    call('HDEL', key, 'capped')
  end
end

-- A tag moves, wherever it is; nothing is made of one that is nowhere.
function nodes.move_tag(node, change)
  local line, member = node.up, node.member
  local tag = lines.tag(line, member)
  if tag then return lines.set(line, member, change(tag)) end
  tag = nodes.cap_of(node)
  if tag then return nodes.set_cap(node, change(tag)) end
  tag = lines.own_tag(line, member)
  if tag then lines.keep(line, member, change(tag)) end
end

-- A weight is another one than that which was counted with: how far a node is ahead of the lowest is worth so much more,
-- or less.
function nodes.rescale(node, factor)
  local line = node.up
  nodes.move_tag(node, function(tag)
    local low = lines.low(line)
    return tag > low and low + (tag - low) * factor or tag
  end)
end

function nodes.is_somewhere(node)
  return lines.tag(node.up, node.member) or nodes.cap_of(node) or lines.own_tag(node.up, node.member)
end

function nodes.reweight(u)
  if not has_weights and u.weight == 1 then return end
  local counted = nodes.marks(u).counted
  if counted == u.weight then return end
  nodes.rescale(u, counted / u.weight)
  u.counted = u.weight
  if u.weight == 1 then
    call('HDEL', user_key(u.name), 'weight')
  else
    call('HSET', user_key(u.name), 'weight', u.weight)
  end
  if u.weight ~= 1 and nodes.is_ready(u) then
    call('PERSIST', user_key(u.name))
  else
    call('PEXPIRE', user_key(u.name), USER_TTL)
  end
  if not has_weights then
    has_weights = true
    call('HSET', state_key, 'weighted', 1)
  end
end

-- Into a line: at its clock, but not below the lowest tag, and at most half a service above it: its own or the mean.
-- Less than a whole one, so that nobody is served twice before a newcomer; more than nothing, so that newcomers, however
-- many there are, cannot keep the others from becoming the lowest. Never below the tag it left with, but for one that
-- was held at its cap, which gets some of what it is owed. first: whether there are others, low: the lowest tag of those.
-- In a partition the users of the other ones are among them.
function nodes.enter(node, service, first, low)
  local line = node.up
  if line.elsewhere and not (first and has_assigned) then
    first, low = true, first and math.min(low, line.elsewhere) or line.elsewhere
  end
  local own, entry = nodes.cap_of(node), nil
  if own then
    entry = (first and low or line.clock) - lines.CREDIT * line.mean
    nodes.set_cap(node, nil)
  else
    own = lines.own_tag(line, node.member)
    if line.mean > 0 then service = math.min(service, line.mean) end
    entry = first and math.max(low, math.min(line.clock, low + service / 2)) or line.clock
  end
  lines.set(line, node.member, own and math.max(own, entry) or entry)
end

-- The user may be served from now on; its next task costs this much.
function nodes.join(u, cost)
  nodes.reweight(u)
  if u.weight ~= 1 then call('PERSIST', user_key(u.name)) end
  local node = u
  while node.up do
    local line = node.up
    local first, low = lines.lowest(line)
    local was_empty = not first
    if has_assigned then first, low = assignments.lowest(u, line) end
    nodes.enter(node, cost / node.weight, first, low)
    if not was_empty then break end
    line.was_joined, line.is_changed = true, true
    node = line
  end
  if has_assigned then assignments.enter(u) end
  call('ZADD', users_key, now, u.name)
end

-- The tag is kept. What comes into an empty line next begins where this one ended, and its group leaves as well.
-- `is_capped`: it has work, and as much of it runs as may.
function nodes.leave(u, is_capped)
  local node = u
  local tag = nodes.is_ready(u)
  if tag and is_weighted(u) then call('PEXPIRE', user_key(u.name), USER_TTL) end
  while tag do
    local line = node.up
    lines.remove(line, node.member)
    if is_capped then nodes.set_cap(node, tag) else lines.keep(line, node.member, tag) end
    if line.size > 0 then return end
    line.clock, line.is_changed = math.max(line.clock, tag), true
    node = line
    tag = node.up and lines.tag(node.up, node.member)
  end
end

-- It waits for nothing that a cap would keep from running.
function nodes.forget_cap(u)
  local tag = nodes.cap_of(u)
  if not tag then return end
  nodes.set_cap(u, nil)
  lines.keep(u.up, u.member, tag)
end

-- What it had belongs to the time of the line that it has left.
function nodes.forget_own_tag(u)
  local line, member = u.up, u.member
  if nodes.cap_of(u) then nodes.set_cap(u, nil) end
  line.kept[member], line.leaving[member] = false, nil
  call('ZREM', line.left_key, member)
end

-- One service.
function nodes.charge(u, cost)
  local node = u
  while node.up do
    local line = node.up
    local tag, step = lines.tag(line, node.member), cost / node.weight
    line.clock, line.is_changed = math.max(line.clock + cost / lines.size(line), tag), true
    line.mean = lines.mean_after(line.mean, step)
    lines.set(line, node.member, tag + step)
    node = line
  end
end

-- What became known of a service after its start. One that is nowhere stands at the lowest. Where nobody is in line, nobody
-- waited for what was used: the clock comes along.
function nodes.charge_late(u, cost)
  if nodes.is_somewhere(u) or cost > 0 then nodes.reweight(u) end
  local node = u
  while node.up do
    local line, by = node.up, cost / node.weight
    if by > 0 and not nodes.is_somewhere(node) then lines.keep(line, node.member, lines.low(line)) end
    nodes.move_tag(node, function(tag)
      local moved = tag + by
      if by > 0 and line.mean > 0 then
        moved = tag + math.max(0, math.min(by, lines.low(line) + lines.LARGEST_DEBT * line.mean - tag))
      end
      if by > 0 and not lines.lowest(line) then line.clock, line.is_changed = math.max(line.clock, moved), true end
      return moved
    end)
    node = line
  end
end

-- What a user was served out of turn is held against it no longer, beyond the horizon.
function nodes.forgive(u)
  local line = u.up
  lines.flush(line)
  local found = call('ZRANGE', line.key, 0, 1, 'WITHSCORES')
  local others = tonumber(found[1] == u.member and found[4] or found[1] ~= u.member and found[2] or nil)
  if others then nodes.move_tag(u, function(tag) return math.min(tag, others + lines.HORIZON * line.mean) end) end
end

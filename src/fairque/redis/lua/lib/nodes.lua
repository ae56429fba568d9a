-- Nodes: users, and the groups in which they stand. A node is a member of the line `up`, with a weight; the node of a group
-- is the line of its users. What is done to a user is done to each node above it.
-- user:<u>  hash  `weight`: what its tag was counted with, where that is not 1; `capped`: the tag at which it is held
--@include base
--@include state
--@include lines
--@include policies
--@include gcra

local PLAIN = {} -- the policy of everybody in a queue that has none
local known_users, everybody, inherited = {}, nil, nil
local function read_policies()
  known_users, everybody = {}, read_policy('*')
  inherited = { __index = everybody }
end

local function user_of(name)
  local u = known_users[name]
  if u then return u end
  local policy = everybody and setmetatable(read_policy(name), inherited) or PLAIN
  u = { name = name, member = name, policy = policy, weight = policy.weight or 1 }
  u.up = policy.group and line_at(policy.group) or root
  known_users[name] = u
  return u
end

-- What is kept of a user beside its tag, read once.
local function marks_of(u)
  if u.tat or not (everybody or has_weights) then return u end
  local marks = call('HMGET', user_key(u.name), 'tat', 'tat_of', 'open_until', 'capped', 'weight')
  u.tat, u.open_until = rate_tat(marks[1], marks[2], u.policy.rate_us), tonumber(marks[3] or 0)
  u.capped, u.counted = tonumber(marks[4] or nil), tonumber(marks[5] or 1)
  return u
end

-- Whoever is busy leaves now and then, which gives the hash a time to live; what its weight was must not be forgotten
-- while it stands in a line.
local function remember(u, ...)
  if call('HSET', user_key(u.name), ...) > 0 and u.weight == 1 then call('PEXPIRE', user_key(u.name), USER_TTL) end
end

local function is_ready(u) return tag_in(u.up, u.member) end

-- At what tag a node is held at its cap; nil where it is not.
local function cap_of(node)
  if node.path then return node.capped end
  return marks_of(node).capped
end

local function set_cap(node, tag)
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
local function move_tag(node, change)
  local line, member = node.up, node.member
  local tag = tag_in(line, member)
  if tag then return set_tag(line, member, change(tag)) end
  tag = cap_of(node)
  if tag then return set_cap(node, change(tag)) end
  tag = own_tag(line, member)
  if tag then keep_tag(line, member, change(tag)) end
end

-- A weight is another one than that which was counted with: how far a node is ahead of the lowest is worth so much more,
-- or less.
local function rescale(node, factor)
  local line = node.up
  move_tag(node, function(tag)
    local low = low_of(line)
    return tag > low and low + (tag - low) * factor or tag
  end)
end

local function is_somewhere(node)
  return tag_in(node.up, node.member) or cap_of(node) or own_tag(node.up, node.member)
end

local function reweight(u)
  if not has_weights and u.weight == 1 then return end
  local counted = marks_of(u).counted
  if counted == u.weight then return end
  rescale(u, counted / u.weight)
  u.counted = u.weight
  if u.weight == 1 then return call('HDEL', user_key(u.name), 'weight') end
  call('HSET', user_key(u.name), 'weight', u.weight)
  if is_ready(u) then
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
-- was held at its cap, which gets some of what it is owed.
local function enter(node, service)
  local line = node.up
  local own, entry = cap_of(node), nil
  local first, low = lowest(line)
  if own then
    entry = (first and low or line.clock) - CREDIT * line.mean
    set_cap(node, nil)
  else
    own = own_tag(line, node.member)
    if line.mean > 0 then service = math.min(service, line.mean) end
    entry = first and math.max(low, math.min(line.clock, low + service / 2)) or line.clock
  end
  set_tag(line, node.member, own and math.max(own, entry) or entry)
end

-- The user may be served from now on; its next task costs this much.
local function join(u, cost)
  reweight(u)
  if u.weight ~= 1 then call('PERSIST', user_key(u.name)) end
  local node = u
  while node.up do
    local line = node.up
    local was_empty = not lowest(line)
    enter(node, cost / node.weight)
    if not was_empty then break end
    line.was_joined, line.is_changed = true, true
    node = line
  end
  call('ZADD', users_key, now, u.name)
end

-- The tag is kept. What comes into an empty line next begins where this one ended, and its group leaves as well.
-- `is_capped`: it has work, and as much of it runs as may.
local function leave(u, is_capped)
  local node = u
  local tag = is_ready(u)
  if tag and u.weight ~= 1 then call('PEXPIRE', user_key(u.name), USER_TTL) end
  while tag do
    local line = node.up
    take_out(line, node.member)
    if is_capped then set_cap(node, tag) else keep_tag(line, node.member, tag) end
    if line.size > 0 then return end
    line.clock, line.is_changed = math.max(line.clock, tag), true
    node = line
    tag = node.up and tag_in(node.up, node.member)
  end
end

-- It waits for nothing that a cap would keep from running.
local function forget_cap(u)
  local tag = cap_of(u)
  if not tag then return end
  set_cap(u, nil)
  keep_tag(u.up, u.member, tag)
end

-- What it had belongs to the time of the line that it has left.
local function forget_own_tag(u)
  local line, member = u.up, u.member
  if cap_of(u) then set_cap(u, nil) end
  line.kept[member], line.leaving[member] = false, nil
  call('ZREM', line.left_key, member)
end

-- One service.
local function charge_service(u, cost)
  local node = u
  while node.up do
    local line = node.up
    local tag, step = tag_in(line, node.member), cost / node.weight
    line.clock, line.is_changed = math.max(line.clock + cost / size_of(line), tag), true
    line.mean = mean_after(line.mean, step)
    set_tag(line, node.member, tag + step)
    node = line
  end
end

-- What became known of a service after its start. One that is nowhere stands at the lowest.
local function charge_late(u, cost)
  if is_somewhere(u) or cost > 0 then reweight(u) end
  local node = u
  while node.up do
    local line, by = node.up, cost / node.weight
    if by > 0 and not is_somewhere(node) then keep_tag(line, node.member, low_of(line)) end
    move_tag(node, function(tag)
      if by <= 0 or line.mean == 0 then return tag + by end
      return tag + math.max(0, math.min(by, low_of(line) + LARGEST_DEBT * line.mean - tag))
    end)
    node = line
  end
end

-- What a user was served out of turn is held against it no longer, beyond the horizon.
local function forgive(u)
  local line = u.up
  flush(line)
  local found = call('ZRANGE', line.key, 0, 1, 'WITHSCORES')
  local others = tonumber(found[1] == u.member and found[4] or found[1] ~= u.member and found[2] or nil)
  if others then move_tag(u, function(tag) return math.min(tag, others + HORIZON * line.mean) end) end
end

#!lua flags=no-writes
-- Everything that decides when a user, or one of its tasks, is served.
-- KEYS[1]  state
-- Returns  a flat list of names and values:
--          now, id, task (fields), ended (first ten bytes of the result record), has_body, name, rank (in its lane), lane,
--          scheduled_at, needs, critical, normal, held, running, tag, parked_until, policy, default, marks (tat,
--          tat_of, open_until), group, group_policy, group_tag, metrics, queue_metrics, limit (fields), name_running, held_users,
--          workers (per worker: fields), ready (per member: name, tag, weight, backlog), siblings (the same, inside the
--          group), ready_line and siblings_line (members that are ready, members before it), queued
-- Cost     O(log users + members looked at + workers)

-- lib/base.lua
-- The queue's keys and its clock. Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash
-- tag.
local call = redis.call
local prefix = string.sub(KEYS[1], 1, -6)
local state_key = KEYS[1]
local ready_key = prefix .. 'ready'
local due_key = prefix .. 'due'
local leases_key = prefix .. 'leases'
local users_key = prefix .. 'users'
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew

-- A user hash nobody touched for this long is forgotten (its policy is a key of its own and stays).
local USER_TTL = 604800000

local function user_key(user) return prefix .. 'user:' .. user end
local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

local function publish(user, id, event) call('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end

-- lib/message.lua
-- What scripts read of the body of a task. A body that cannot be read belongs to somebody else.

local LONGEST_HEAD = 600 -- of a body, with a name of 512 bytes

-- The name of a task, '' where the body cannot be read.
local function name_in(body)
  local ok, _, name = pcall(cmsgpack.unpack_one, body, 19)
  return ok and type(name) == 'string' and name or ''
end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

local function cost_of_task(user, id)
  local head = redis.pcall('GETRANGE', body_key(user, id), 0, 17)
  return type(head) == 'string' and cost_of(head) or 1
end
-- ARGV[1] is the msgpack of Explain: user: str, id: str, most: int
--   id: '' for the first task in line. most: members of each set to look at.
local args = cmsgpack.unpack(ARGV[1])
local user, id, most = args[1], args[2], args[3]
local found = {}
local function tell(name, value)
  found[#found + 1] = name
  found[#found + 1] = value or ''
end

local function policy_of(whose) return call('GET', prefix .. 'policy:' .. whose) end
local default = policy_of('*')
local default_weight = default and cmsgpack.unpack(default).weight or 1
local function weight_of(whose)
  local packed = policy_of(whose)
  return packed and cmsgpack.unpack(packed).weight or (string.byte(whose) == 64 and 1 or default_weight)
end

local function backlog_of(whose)
  if string.byte(whose) ~= 64 then
    return call('ZCARD', place_key('critical', whose)) + call('ZCARD', place_key('normal', whose))
  end
  local total = 0
  for _, member in ipairs(call('ZRANGE', prefix .. 'ready:' .. string.sub(whose, 2), 0, 49)) do
    total = total + call('ZCARD', place_key('critical', member)) + call('ZCARD', place_key('normal', member))
  end
  return math.floor(total * math.max(1, call('ZCARD', prefix .. 'ready:' .. string.sub(whose, 2)) / 50))
end

local function members_of(set)
  local rows, flat = {}, call('ZRANGE', set, 0, most - 1, 'WITHSCORES')
  for at = 1, #flat, 2 do
    rows[#rows + 1] = { flat[at], flat[at + 1], string.format('%.17g', weight_of(flat[at])), backlog_of(flat[at]) }
  end
  return rows
end

local function line_of(set, member)
  local before = call('ZRANK', set, member)
  return { call('ZCARD', set), before or 0 }
end

local function look_at_task()
  local critical, normal = place_key('critical', user), place_key('normal', user)
  local held = place_key('held', user)
  for _, set in ipairs({ critical, normal, held }) do
    if id == '' then id = call('ZRANGE', set, 0, 0)[1] or '' end
  end
  tell('id', id)
  if id == '' then return end
  local fields = call('HGETALL', task_key(user, id))
  tell('task', fields)
  tell('ended', call('GETRANGE', result_key(user, id), 0, 9))
  local body = call('GET', body_key(user, id))
  tell('has_body', body and 1 or 0)
  tell('name', body and name_in(body))
  local lane, rank
  for at, set in ipairs({ critical, normal, held }) do
    if not rank then lane, rank = at, call('ZRANK', set, id) end
  end
  tell('lane', rank and ({ 'critical', 'normal', 'held' })[lane])
  tell('rank', rank and string.format('%d', rank))
  local due = call('ZSCORE', place_key('scheduled', user), id)
  tell('scheduled_at', due and string.format('%d', due))
  tell('needs', call('SRANDMEMBER', needs_key(user, id), 100))
  if not body then return end
  local name = name_in(body)
  tell('limit', call('HGETALL', prefix .. 'limit:' .. name))
  tell('name_running', call('SCARD', prefix .. 'running:' .. name))
  tell('held_users', call('ZCARD', prefix .. 'held-users:' .. name))
end

tell('now', now)
look_at_task()
tell('critical', call('ZCARD', place_key('critical', user)))
tell('normal', call('ZCARD', place_key('normal', user)))
tell('held', call('ZCARD', place_key('held', user)))
tell('running', call('XLEN', stream_key('critical', user)) + call('XLEN', stream_key('normal', user)))
local policy = policy_of(user)
local group = policy and cmsgpack.unpack(policy).group
tell('tag', call('ZSCORE', group and prefix .. 'ready:' .. group or ready_key, user))
tell('parked_until', call('ZSCORE', prefix .. 'parked', user))
tell('policy', policy)
tell('default', default)
tell('marks', call('HMGET', prefix .. 'user:' .. user, 'tat', 'tat_of', 'open_until'))
if group then
  tell('group', '@' .. group)
  tell('siblings', members_of(prefix .. 'ready:' .. group))
  tell('siblings_line', line_of(prefix .. 'ready:' .. group, user))
end
tell('metrics', call('GET', prefix .. 'metrics:' .. user))
tell('queue_metrics', call('GET', prefix .. 'metrics:*'))
local workers = {}
for at, worker in ipairs(call('ZRANGEBYSCORE', prefix .. 'workers', now - 60000, '+inf')) do
  workers[at] = call('HGETALL', prefix .. 'worker:' .. worker)
end
tell('workers', workers)
tell('ready', members_of(ready_key))
tell('ready_line', line_of(ready_key, group and '@' .. group or user))
local totals = call('HMGET', state_key, 'critical', 'normal')
tell('queued', (totals[1] or 0) + (totals[2] or 0))
return found

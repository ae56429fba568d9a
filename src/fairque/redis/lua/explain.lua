#!lua flags=no-writes
-- Everything that decides when a user, or one of its tasks, is served.
-- KEYS[1]  state
-- Returns  a flat list of names and values:
--          now, id, task (fields), ended (first ten bytes of the result record), has_body, name, is_payload, rank (in its lane), lane,
--          scheduled_at, needs, critical, normal, held, running, tag, parked_until, policy, bytes, default, marks (tat,
--          tat_of, open_until), metrics, queue_metrics, limits (per limit that the task has: key, max, us between two
--          starts, burst, tat, how many run, are let in, users that wait), workers (per worker: fields), lines (from its own
--          outwards: its name in it, per member name, tag, weight and backlog, members that are ready, members before
--          it), queued
-- Cost     O(log users + members looked at + workers)
--@include base
--@include message
--@include bytes_used
--@include limits
--@include live_workers
--@arguments
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

local function tasks_of(whose)
  return call('ZCARD', place_key('critical', whose)) + call('ZCARD', place_key('normal', whose))
end

-- Of a group, as its first members have it; of those deep within one, groups count as one task.
local function backlog_of(whose)
  if string.byte(whose) ~= 64 then return tasks_of(whose) end
  local line = prefix .. 'ready:' .. string.sub(whose, 2)
  local total = 0
  for _, member in ipairs(call('ZRANGE', line, 0, 49)) do
    total = total + (string.byte(member) == 64 and 1 or tasks_of(member))
  end
  return math.floor(total * math.max(1, call('ZCARD', line) / 50))
end

local function members_of(set)
  local rows, flat = {}, call('ZRANGE', set, 0, most - 1, 'WITHSCORES')
  for at = 1, #flat, 2 do
    rows[#rows + 1] = { flat[at], flat[at + 1], string.format('%.17g', weight_of(flat[at])), backlog_of(flat[at]) }
  end
  return rows
end

local function line_of(set, member)
  return { member, members_of(set), call('ZCARD', set), call('ZRANK', set, member) or 0 }
end

local function lines_of(path)
  local found_lines, member = {}, user
  while path do
    found_lines[#found_lines + 1] = line_of(prefix .. 'ready:' .. path, member)
    member, path = '@' .. path, string.match(path, '^(.*)/')
  end
  found_lines[#found_lines + 1] = line_of(ready_key, member)
  return found_lines
end

-- Whether it is for a handler: what follows the heading is a map, as the arguments of a function are an array.
local function is_payload(body)
  local ok, after = pcall(cmsgpack.unpack_one, body, 19)
  local first = ok and after >= 0 and string.byte(body, after + 1) or 0
  return first >= 0x80 and first <= 0x8f or first == 0xde or first == 0xdf
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
  tell('is_payload', body and is_payload(body) and 1 or 0)
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
  tell('limits', limited and limited.look_at(user, body))
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
tell('bytes', bytes_used(user))
tell('default', default)
tell('marks', call('HMGET', prefix .. 'user:' .. user, 'tat', 'tat_of', 'open_until'))
tell('metrics', call('GET', prefix .. 'metrics:' .. user))
tell('queue_metrics', call('GET', prefix .. 'metrics:*'))
local workers = {}
for at, worker in ipairs(live_workers(60000)) do workers[at] = worker[2] end
tell('workers', workers)
tell('lines', lines_of(group))
local totals = call('HMGET', state_key, 'critical', 'normal')
tell('queued', (totals[1] or 0) + (totals[2] or 0))
return found

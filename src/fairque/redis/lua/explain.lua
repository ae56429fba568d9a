#!lua flags=no-writes
-- Everything that decides when a user, or one of its tasks, is served.
-- KEYS[1]  state
-- Returns  a flat list of names and values:
--          now, id, task (fields), ended (first ten bytes of the result record), has_body, name, cost (of its body), run (mean seconds of its
--          name, or ''), is_payload, rank (in its lane), lane, scheduled_at, needs (per task that it waits for, at
--          most 100: id and state or ''), needed (how many it waits for), blockers (dead letters for which it waits in the end, at
--          most 5), critical, normal, held, running, tag, policy, bytes, default, marks (tat,
--          tat_of, open_until), metrics, queue_metrics, limits (what lib/limits.lua shows of each), workers (per worker: fields),
--          lines (from its own outwards: its name in it, members, how many are ready, how many before it; per member: name,
--          tag, weight, then of a user its backlog, and the cost and seconds of its services, or ''; of a group its members,
--          and how many it has), offset (of tags beside those of other partitions), started, taken (slots of others that
--          those keep to themselves)
-- Cost     O(log users + members looked at + workers)
--@include base
--@include moved
--@include message
--@include standing
--@include bytes_used
--@include limits
--@include run_times
--@include live_workers
--@arguments
refuse_moved(user)
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

local function ready_set_of(packed)
  local group = packed and cmsgpack.unpack(packed).group
  return group and prefix .. 'ready:' .. group or ready_key
end

local function tasks_of(whose)
  return call('ZCARD', place_key('critical', whose)) + call('ZCARD', place_key('normal', whose))
end

-- What a service of the user costs and how long it runs: lately, else what its next task says.
local times = new_run_times()
local function service_of(whose)
  local blob = call('GET', prefix .. 'metrics:' .. whose)
  local m = blob and cmsgpack.unpack(blob)
  if m and m[9] > 0.001 then return m[7] / m[9], m[8] / m[9] end
  local next_one = call('ZRANGE', place_key('critical', whose), 0, 0)[1] or call('ZRANGE', place_key('normal', whose), 0, 0)[1]
  local head = next_one and call('GETRANGE', body_key(whose, next_one), 0, LONGEST_HEAD) or ''
  return cost_of(head), times.mean(name_in(head))
end

local function text_of_number(x) return x and string.format('%.9g', x) or '' end

-- The first members of a line. Of all groups together so many are looked at, and some of each.
local OF_A_GROUP, left = 50, 2 * most
--@once
local members_of
local function row_of(member, tag)
  left = left - 1
  local weight = string.format('%.17g', weight_of(member))
  if string.byte(member) == 64 then
    local line = prefix .. 'ready:' .. string.sub(member, 2)
    return { member, tag, weight, members_of(line, math.min(OF_A_GROUP, left)), call('ZCARD', line) }
  end
  local cost, run = service_of(member)
  return { member, tag, weight, tasks_of(member), text_of_number(cost), text_of_number(run) }
end

function members_of(set, some)
  local rows, flat = {}, some > 0 and call('ZRANGE', set, 0, some - 1, 'WITHSCORES') or {}
  for at = 1, #flat, 2 do
    local is_whole, row = try_alone(row_of, flat[at], flat[at + 1])
    rows[#rows + 1] = is_whole and row or nil -- one with a damaged key is passed over, as claims do
  end
  return rows
end

local function line_of(set, member)
  return { member, members_of(set, most), call('ZCARD', set), call('ZRANK', set, member) or 0 }
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
  tell('cost', text_of_number(body and cost_of(body)))
  tell('run', text_of_number(body and times.mean(name_in(body))))
  tell('is_payload', body and is_payload(body) and 1 or 0)
  local lane, rank
  for at, set in ipairs({ critical, normal, held }) do
    if not rank then lane, rank = at, call('ZRANK', set, id) end
  end
  tell('lane', rank and ({ 'critical', 'normal', 'held' })[lane])
  tell('rank', rank and string.format('%d', rank))
  local due = call('ZSCORE', place_key('scheduled', user), id)
  tell('scheduled_at', due and string.format('%d', due))
  local needs = {}
  for at, need in ipairs(call('SRANDMEMBER', needs_key(user, id), 100)) do needs[at] = { need, standing_of(user, need) } end
  tell('needs', needs)
  tell('needed', call('SCARD', needs_key(user, id)))
  local outlook = new_outlook(user)
  outlook.is_blocked(id)
  tell('blockers', outlook.blockers)
  if not body then return end
  tell('limits', limited and limited.look_at(user, id, body))
end

tell('now', now)
look_at_task()
tell('critical', call('ZCARD', place_key('critical', user)))
tell('normal', call('ZCARD', place_key('normal', user)))
tell('held', call('ZCARD', place_key('held', user)))
tell('running', call('XLEN', stream_key('critical', user)) + call('XLEN', stream_key('normal', user)))
local policy = policy_of(user)
tell('tag', call('ZSCORE', ready_set_of(policy), user))
tell('policy', policy)
tell('bytes', bytes_used(user))
tell('default', default)
tell('marks', call('HMGET', prefix .. 'user:' .. user, 'tat', 'tat_of', 'open_until'))
tell('metrics', call('GET', prefix .. 'metrics:' .. user))
tell('queue_metrics', call('GET', prefix .. 'metrics:*'))
local workers = {}
for at, worker in ipairs(live_workers(60000)) do workers[at] = worker[2] end
tell('workers', workers)
tell('lines', lines_of(policy and cmsgpack.unpack(policy).group))

-- Slots of others whose tasks wait for the end of some of their own: what ends is followed by the next one of theirs.
local function taken_slots()
  local function taken_by(lane, other)
    local waits = other ~= user and tasks_of(other) + call('ZCARD', place_key('held', other)) > 0
    if not waits or call('ZSCORE', ready_set_of(policy_of(other)), other) then return 0 end
    return call('XLEN', stream_key(lane, other))
  end
  local slots = 0
  for _, entry in ipairs(call('ZRANGE', leases_key, 0, most - 1)) do
    local is_whole, taken = try_alone(taken_by, string.match(entry, '^([^:]+):(.*)$'))
    slots = slots + (is_whole and taken or 0)
  end
  return slots
end
tell('offset', call('HGET', state_key, 'offset'))
tell('started', call('HGET', state_key, 'started'))
tell('taken', taken_slots())
return found

#!lua
-- Promote what is due, steal from silent workers, then serve fairly.
-- KEYS[1]  state
-- Returns  {now, ms for which the worker may sleep or -1, then per delivery: user, id, lane, stream id, attempt, score,
--          history, body}. history: '' at the first delivery, else 'failures lost returned returned-since queued canceling'
-- Cost     O(wanted log users), plus O(1) per promoted and stolen task, both bounded
--@include base
--@include state
--@include task
--@include places
--@include message
--@include fair
--@include cursor
--@include wake
--@include keeper
--@include sweep
--@include place
--@include limits
--@include canceled
--@include depend
--@arguments
local step_us, by_time = priority_step_ms * 1000, fairness == 'time'
local PROMOTIONS, LOOKS, MOVES = 200, 20, 200
local SPARE = 10 -- promoted of one user beyond what is wanted: other workers find something, too
local LOOK_SHARE = 0.4 -- of a lease, between two looks at a lane: a lease and this are less than 1.5 leases, with room
local served, delivered, promoted, moved, is_swept = {}, 0, {}, 0, false

-- Each user in the first of its groups only.
local served_groups, named, everyone = {}, {}, false
for _, group in ipairs(groups) do
  local users = {}
  for _, user in ipairs(group) do
    if not named[user] then users[#users + 1] = user end
    named[user] = true
  end
  if #group == 0 then everyone = true end
  if #group == 0 or #users > 0 then served_groups[#served_groups + 1] = users end
end

local function promote(user, most)
  local waiting = place_key('scheduled', user)
  local ids = call('ZRANGEBYSCORE', waiting, '-inf', '(' .. now + 1, 'LIMIT', 0, most)
  for _, id in ipairs(ids) do
    local key = task_key(user, id)
    local known = call('HMGET', key, 'lane', 'score', 'priority', 'watched')
    local lane, score = known[1], known[2]
    if not score then lane, score = score_of(tonumber(known[3] or 3), step_us) end
    call('HSET', key, 'state', 'queued', 'queued', now)
    place(user, id, lane, score)
    if known[4] then publish(user, id, 'waiting') end
  end
  if #ids > 0 then
    call('ZREM', waiting, unpack(ids))
    count('scheduled', -#ids)
    promoted[user] = (promoted[user] or 0) + #ids
  end
  local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  if first then
    local at = math.max(now, math.floor(first))
    call('ZADD', due_key, at, user)
    note_moment(at, user)
  else
    call('ZREM', due_key, user)
  end
end

-- By turns: whoever has more that is due comes after all those that wait since before now.
local function promote_due()
  local users = call('ZRANGEBYSCORE', due_key, '-inf', now, 'LIMIT', 0, LOOKS)
  local most = math.min(want + SPARE, math.floor(PROMOTIONS / #users))
  for _, user in ipairs(users) do promote(user, most) end
end

-- What was promoted or let in again, and not taken by this call, is news for other workers.
local function announce_promoted()
  if governed and governed.all_paused then return end
  for user, tasks in pairs(promoted) do
    if call('ZSCORE', governed and governed.user(user).ready_key or ready_key, user) then wake(user, tasks, worker) end
  end
end

-- Zeros where the task has no such field.
local function history_of(failures, lost, returned, since, queued, canceling)
  return (failures or 0) .. ' ' .. (lost or 0) .. ' ' .. (returned or 0) .. ' ' .. (since or 0) .. ' ' .. (queued or 0) ..
    (canceling and ' 1' or ' 0')
end

local function note(user, id, lane, stream_id, attempt, score, history, body)
  local n = #served
  served[n + 1], served[n + 2], served[n + 3], served[n + 4] = user, id, lane, stream_id
  served[n + 5], served[n + 6], served[n + 7], served[n + 8] = attempt, score, history, body
  delivered = delivered + 1
end

local function load_body(user, id)
  local body = redis.pcall('GET', body_key(user, id))
  if type(body) == 'table' then return '\0not a string' end
  if body and #body > max_message_bytes then
    return '\0too large: ' .. #body .. ' bytes, the limit is ' .. string.format('%d', max_message_bytes)
  end
  return body
end

-- A delivery whose worker fell silent is ours now; (stream id, attempt) fences off the old owner.
local function take_over(lane, user, stream_id, id)
  local key = task_key(user, id)
  local known = call('HMGET', key, 'stream_id', 'attempt', 'score', 'failures', 'lost', 'returned', 'since', 'queued',
    'worker', 'canceling', 'limited')
  local body = known[1] == stream_id and load_body(user, id)
  if not body then
    call('XACK', stream_key(lane, user), 'workers', stream_id)
    call('XDEL', stream_key(lane, user), stream_id)
    if known[11] then
      limited = limited or new_limits()
      limited.stop(known[11], user, id)
    end
    if known[1] == stream_id then call('DEL', keys_of_task(user, id)) end
    count('started', -1)
    return
  end
  local attempt, lost = known[2] + 1, (known[5] or 0) + 1
  call('HSET', key, 'attempt', attempt, 'lost', lost, 'worker', worker, 'started', now_text)
  note(user, id, lane, stream_id, attempt, known[3], history_of(known[4], lost, known[6], known[7], known[8], known[10]),
    body)
  local old = known[9]
  if old and old ~= worker then
    local stream = stream_key(lane, user)
    if #call('XPENDING', stream, 'workers', '-', '+', 1, old) == 0 then
      call('XGROUP', 'DELCONSUMER', stream, 'workers', old)
    end
  end
end

-- Workers come and go while a lane stays busy: forget the consumers of those that no longer report.
local function forget_consumers(stream)
  if call('XINFO', 'GROUPS', stream)[1][4] <= call('ZCARD', prefix .. 'workers') + 1 then return end
  for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream, 'workers')) do
    if consumer[4] == 0 and not call('ZSCORE', prefix .. 'workers', consumer[2]) then
      call('XGROUP', 'DELCONSUMER', stream, 'workers', consumer[2])
    end
  end
end

local function steal_from(member, most)
  local colon = string.find(member, ':', 1, true)
  local lane, user = string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
  local stream, cursor_field = stream_key(lane, user), 'cursor:' .. member
  if call('EXISTS', stream) == 0 then
    call('ZREM', leases_key, member)
    forget_cursor(member)
    return
  end
  local cursor = call('HGET', state_key, cursor_field) or '0-0'
  local found = call('XAUTOCLAIM', stream, 'workers', worker, lease_ms, cursor, 'COUNT', most)
  for _, entry in ipairs(found[2]) do take_over(lane, user, entry[1], entry[2][2]) end
  if call('XLEN', stream) == 0 then
    call('DEL', stream)
    call('ZREM', leases_key, member)
    forget_cursor(member)
  elseif found[1] == '0-0' then
    forget_consumers(stream)
    call('ZADD', leases_key, now + math.ceil(lease_ms * LOOK_SHARE), member)
    forget_cursor(member)
  else
    call('ZADD', leases_key, now, member) -- behind those whose time came before now
    if call('HSET', state_key, cursor_field, found[1]) == 1 then count('cursors', 1) end
  end
end

-- When to look at the lanes this worker may steal from: the members of `leases` and their times.
local function own_looks()
  local members = {}
  for _, group in ipairs(served_groups) do
    for _, user in ipairs(group) do
      members[#members + 1] = 'critical:' .. user
      members[#members + 1] = 'normal:' .. user
    end
  end
  return members, call('ZMSCORE', leases_key, unpack(members))
end

local function next_look()
  return tonumber(call('ZRANGE', leases_key, 0, 0, 'WITHSCORES')[2] or math.huge)
end

local function lanes_to_look_at()
  if everyone then return call('ZRANGEBYSCORE', leases_key, '-inf', now, 'LIMIT', 0, LOOKS) end
  if next_look() > now then return {} end
  local due = {}
  local members, looks = own_looks()
  for at, look in ipairs(looks) do
    if look and tonumber(look) <= now then due[#due + 1] = { tonumber(look), at } end
  end
  table.sort(due, function(one, other) return one[1] < other[1] or (one[1] == other[1] and one[2] < other[2]) end)
  local first = {}
  for at = 1, math.min(#due, LOOKS) do first[at] = members[due[at][2]] end
  return first
end

-- At most half while others wait for their turn; of a single task every other one.
local function may_steal()
  if call('EXISTS', ready_key) == 0 then return want end
  if want > 1 then return math.ceil(want / 2) end
  return call('HDEL', state_key, 'stole') == 1 and 0 or 1
end

-- The lanes that are due share alike.
local function steal()
  local lanes = lanes_to_look_at()
  local most = #lanes > 0 and may_steal() or 0
  local of_each = math.ceil(most / #lanes)
  for _, member in ipairs(lanes) do
    if delivered >= most then break end
    steal_from(member, math.min(of_each, most - delivered))
  end
  if want == 1 and delivered == 1 then call('HSET', state_key, 'stole', 1) end
end

-- What this call knows of the users it serves.
local serving = {}
local function knowledge(user)
  local known = serving[user]
  if not known then
    known = {
      critical = call('ZCARD', place_key('critical', user)),
      normal = call('ZCARD', place_key('normal', user)),
    }
    serving[user] = known
  end
  return known
end

-- Into the stream, and into this worker's hands: FORCE delivers an entry that no consumer has read.
local function append(lane, user, id, known)
  local stream = stream_key(lane, user)
  if not known[stream] then
    if call('EXISTS', stream) == 0 then
      call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
      call('ZADD', leases_key, now + lease_ms, lane .. ':' .. user)
    end
    known[stream] = true
  end
  local stream_id = call('XADD', stream, '*', 'id', id)
  call('XCLAIM', stream, 'workers', worker, 0, stream_id, 'FORCE', 'JUSTID', 'LASTID', stream_id)
  return stream_id
end

-- What is charged by time is not known before: what tasks of this name took lately, corrected when it is.
local function estimate(name)
  local known = call('HGET', prefix .. 'run-times', name) or call('HGET', prefix .. 'run-times', '')
  return known and tonumber(string.match(known, ' (.*)')) or 0.1
end

-- Takes the first task of the user; returns what it costs, or nil when it is gone from Redis or waits for its name. Second:
-- whether it was let in for its name.
local function deliver(user, known)
  local lane = known.critical > 0 and 'critical' or 'normal'
  local popped = call('ZPOPMIN', place_key(lane, user))
  known[lane] = known[lane] - 1
  local id, score = popped[1], popped[2]
  local body = load_body(user, id)
  local key = task_key(user, id)
  if not body then
    count(lane, -1)
    call('DEL', keys_of_task(user, id))
    moved = moved + 1
    return nil
  end
  local name = (limited or by_time) and name_in(body)
  local limit = limited and limited.of(name)
  if limit and limited.must_wait(limit, user, id) then
    limited.hold(limit, user, id, lane, score)
    moved = moved + 1
    return nil
  end
  count(lane, -1)
  local cost, history = cost_of(body), ''
  local stream_id = append(lane, user, id, known)
  local attempt = call('HINCRBY', key, 'attempt', 1)
  local new_fields = call('HSET', key, 'state', 'started', 'lane', lane, 'score', score, 'stream_id', stream_id,
    'worker', worker, 'started', now_text)
  local was_offered = limit and limited.start(limit, user, id)
  local paid = false
  if new_fields < 6 then -- it was deferred, scheduled, retried, released, held or watched before
    local before = call('HMGET', key, 'failures', 'lost', 'returned', 'since', 'queued', 'paid', 'watched', 'offered')
    if before[7] then publish(user, id, 'started') end
    if before[8] then -- the limit is gone
      limited = limited or new_limits()
      limited.end_offer(user, id)
    end
    history = history_of(before[1], before[2], before[3], before[4], before[5])
    if before[6] then
      call('HDEL', key, 'paid')
      paid = true
    end
  end
  note(user, id, lane, stream_id, attempt, score, history, body)
  if paid then return 0, was_offered end
  if by_time then
    cost = cost * estimate(name)
    call('HSET', key, 'charged', cost)
  end
  return cost, was_offered
end

-- A user that goes on with something else does not need the places that it was offered.
local function start_next(user, known)
  local cost, was_offered = deliver(user, known)
  if cost and limited and not was_offered and limited.take_back(user) then
    known.critical, known.normal = call('ZCARD', place_key('critical', user)), call('ZCARD', place_key('normal', user))
  end
  return cost
end

-- Whose first task was nothing to run has paid nothing, and stays the lowest: it rests until all others had their turn.
local resting = { users = {}, count = 0 }
local function rest(user) resting.users[user], resting.count = true, resting.count + 1 end
local function wake_the_resting()
  if resting.count == 0 then return false end
  resting.users, resting.count = {}, 0
  return true
end

local ready_users = 0
local function serve(user, tag)
  local known = knowledge(user)
  local cost = start_next(user, known)
  if cost then
    clock = math.max(clock + cost / ready_users, tag)
    mean = mean_after(mean, cost)
    tag = tag + cost
  else
    rest(user)
  end
  if known.critical + known.normal > 0 then
    call('ZADD', ready_key, tag, user)
    return tag
  end
  leave(user, tag, ready_users > 1)
  ready_users = ready_users - 1
  return nil
end

local function serve_governed(user, tag, group_tag)
  local u = governed.user(user)
  local gate = not u.served and governed.gate(u)
  if gate then
    moved = moved + 1
    return governed.hold_back(u, gate)
  end
  u.served = true
  local known = knowledge(user)
  local cost = start_next(user, known)
  if cost then
    governed.note_start(u)
    governed.charge(u, cost, tag, group_tag)
  else
    rest(user)
  end
  if known.critical + known.normal == 0 then return governed.leave(u) end
  gate = governed.gate(u)
  if gate then governed.hold_back(u, gate) end
end

-- Those who are held back, and tasks that must wait for their name, take time as well.
local function has_room() return delivered < want and moved < MOVES end

local function serve_everyone()
  while has_room() do
    local user, tag = lowest_in(ready_key, resting)
    if not user then return end
    serve(user, tag)
  end
end

local function serve_group(group)
  local tags = {}
  for at, tag in ipairs(call('ZMSCORE', ready_key, unpack(group))) do tags[at] = tag and tonumber(tag) end
  while has_room() do
    local best
    for at = 1, #group do
      local tag = not resting.users[group[at]] and tags[at]
      if tag and (not best or tag < tags[best] or (tag == tags[best] and group[at] < group[best])) then best = at end
    end
    if not best then return end
    tags[best] = serve(group[best], tags[best])
  end
end

local function serve_by_policy(group)
  while has_room() do
    local user, tag, group_tag
    if #group == 0 then user, tag, group_tag = governed.lowest(resting) else user = governed.lowest_of(group, resting) end
    if not user then return end
    serve_governed(user, tag, group_tag)
  end
end

local function serve_groups()
  if governed and governed.all_paused then return end
  for _, group in ipairs(served_groups) do
    if governed then
      serve_by_policy(group)
    elseif #group == 0 then
      serve_everyone()
    else
      serve_group(group)
    end
  end
end

-- An idle moment is used to forget users that nothing remembers.
local function prune_users()
  for _, user in ipairs(call('ZRANGEBYSCORE', users_key, '-inf', now - USER_TTL, 'LIMIT', 0, LOOKS)) do
    local kept = call('EXISTS', prefix .. 'user:' .. user, places_of(user))
    if kept > 0 then
      call('ZADD', users_key, now, user)
    else
      call('ZREM', users_key, user)
    end
  end
end

-- The worker wants to be told; how long may it sleep when nobody tells it?
local function in_waiting_sets(verb)
  for _, group in ipairs(served_groups) do
    if #group == 0 then
      call(verb, prefix .. 'waiting', worker)
    else
      for _, user in ipairs(group) do call(verb, prefix .. 'waiting:' .. user, worker) end
    end
  end
end

local function wait()
  prune_users()
  in_waiting_sets('SADD')
  if not everyone and not has_limited then call('HSET', state_key, 'limited', 1) end
end

local function next_own_look()
  if everyone then return next_look() end
  local first = math.huge
  local _, looks = own_looks()
  for _, look in ipairs(looks) do
    if look then first = math.min(first, tonumber(look)) end
  end
  return first
end

local function next_event()
  local at = new_keeping(worker).keep()
  if steals then at = math.min(at, next_own_look()) end
  if call('EXISTS', prefix .. 'announcements') == 1 or moved >= MOVES or is_swept then at = now end
  if limited and limited.is_counting() then at = now end
  return at < math.huge and math.max(0, at - now) or -1
end

call('ZADD', prefix .. 'workers', now, worker)
if has_announcements then pass_on_outcomes(step_us, dead_letter_ttl_ms) end
promote_due()
if governed then
  local asked = call('HGET', state_key, 'sweep')
  is_swept = asked and new_sweep().go_on(asked, promoted)
  governed.unpark(LOOKS, promoted)
end
if limited then limited.tick(promoted) end
if steals then steal() end
local stolen = delivered
repeat
  ready_users = call('ZCARD', ready_key)
  serve_groups()
  local goes_on = wake_the_resting()
  if limited and limited.pass_on(promoted) then
    serving, goes_on = {}, true
  end
until not (goes_on and has_room())
announce_promoted()
count('started', delivered - stolen)
local sleep = 0
if delivered < want and waits then
  sleep = next_event()
  wait()
elseif delivered >= want then
  in_waiting_sets('SREM') -- a message to a busy worker would be missed by an idle one
  if keeper_known ~= '' then new_keeping(worker).hand_on() end
end
save_state()
local reply = { now, sleep }
for at = 1, #served do reply[at + 2] = served[at] end
return reply

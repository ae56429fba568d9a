#!lua flags=allow-oom
-- The first schedules that are due of each user, earliest first, unless another scheduler fires them. Those that ended long ago are forgotten
-- on the way.
-- KEYS[1]  state
-- Returns  {now, ms at which the scheduler looks again, -1: when it is told to, ids that were set aside as they cannot be read, 1 when it is
--          also to end what has expired, per schedule: {id, ms, user, name, spec, anchor, body, priority, delay, revision, slot, expires,
--          callbacks}}
-- Cost     O(most + log schedules)
--@include base
--@include state
--@include fair
--@include schedules
--@include schedule_keepers
--@include expiry
--@arguments
local until_ms = now + ahead_ms
local due, broken = {}, {}

local function is_whole(known)
  local user, spec, anchor, body, priority, revision, slot = known[1], known[3], known[4], known[5], known[6], known[8], known[9]
  return user and spec and body and revision and tonumber(anchor) and tonumber(priority) and tonumber(slot)
end

local function sooner(one, other) return one and other and math.min(one, other) or one or other end

-- When the first task has expired, or else will have: not more often than four times in a second.
local EXPIRY_PAUSE_MS = 250
local function look_at_expiry()
  local at = has_expiring and deadlines.next_ms()
  if not at then return nil end
  if at <= now then return at, now + EXPIRY_PAUSE_MS end
  return nil, math.max(at, now + EXPIRY_PAUSE_MS)
end

-- The first of a user that are due, and when the next one is.
local function due_of(user, most_of_it)
  local listed = call('ZRANGE', schedules_of(user), 0, most_of_it, 'WITHSCORES')
  for at = 1, #listed, 2 do
    local ms = tonumber(listed[at + 1])
    if ms > until_ms or at > 2 * most_of_it then return ms end
    due[#due + 1] = { user, listed[at], ms }
  end
  return math.huge
end

-- By turns of users; a turn ends when something fires. Returns when the first fires that is not among these.
local function find_due()
  local users, next_ms = {}, math.huge
  local listed = call('ZRANGE', schedules_key, 0, most, 'WITHSCORES')
  for at = 1, #listed, 2 do
    if tonumber(listed[at + 1]) > until_ms or #users == most then
      next_ms = tonumber(listed[at + 1])
      break
    end
    users[#users + 1] = listed[at]
  end
  for _, user in ipairs(users) do
    local before = #due
    local is_done, next_of_it = pcall(due_of, user, math.floor(most / #users))
    if not is_done then
      damage().note(user, next_of_it)
      next_of_it = math.max(damage().next_ms, until_ms + 1) -- or a look ahead would meet it again and again
      call('ZADD', schedules_key, next_of_it, user)
    elseif #due == before then
      end_turn(schedules_key, schedules_of(user), user) -- it was noted for what is gone
    end
    next_ms = math.min(next_ms, next_of_it)
  end
  table.sort(due, function(one, other) return one[3] < other[3] end)
  return next_ms < math.huge and next_ms or nil
end

-- Where nobody else counts, all that is due is told.
local function split(next_ms)
  if scheduler == '' then return due, next_ms or -1 end
  local over, expires_ms = look_at_expiry()
  local fires, look_at = take_part(scheduler, sooner(due[1] and due[1][3], over), sooner(next_ms, expires_ms))
  return fires and due or {}, look_at, fires and over and 1 or 0
end

local told, look_at, expires = split(find_due())
local found = { now, look_at, broken, expires or 0 }
for _, each in ipairs(told) do
  local owner, id, ms = each[1], each[2], each[3]
  local known = read_schedule(id, 'user', 'name', 'spec', 'anchor', 'body', 'priority', 'delay', 'revision', 'slot', 'expires',
    'callbacks')
  if is_whole(known) and known[1] == owner then
    found[#found + 1] = { id, ms, unpack(known, 1, 11) }
  else
    broken[#broken + 1] = id
    fire_no_more(owner, id)
    call('ZADD', broken_key, now_text, id)
  end
end
if broken[1] then call('ZREMRANGEBYSCORE', broken_key, '-inf', now - USER_TTL) end
for _, id in ipairs(call('ZRANGE', ended_key, '-inf', now_text, 'BYSCORE', 'LIMIT', 0, 10)) do forget_schedule(id) end
save_state()
return found

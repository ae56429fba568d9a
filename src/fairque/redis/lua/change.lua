#!lua
-- Change when a task that waits may start, or what its priority is.
-- KEYS[1]  state
-- Returns  'changed' | 'same' (it waits, and there was nothing to change) | 'started' | 'ended' | nil when it is not known
-- Cost     O(log backlog)
--@include base
--@include absent
--@include state
--@include alive
--@include once
--@include task
--@include message
--@include place
--@include wake
--@include depend
--@arguments
local before = answered(nonce)
if before then return before end
refuse_absent(user)
local key = task_key(user, id)
local head = call('GETRANGE', body_key(user, id), 0, 17)
if #head < 18 then return call('EXISTS', result_key(user, id)) == 1 and 'ended' or nil end
local fields = call('HMGET', key, 'state', 'lane', 'score', 'held', 'due', 'delay')
local known = { lane = fields[2], score = fields[3], held = fields[4], due = fields[5], delay = fields[6] }
local state = fields[1] or 'queued'
if state == 'failed' then return 'ended' end
if state == 'started' then return 'started' end

local step_us = priority_step_ms * 1000
local old = string.byte(head, 18)

-- Its place in line, wherever it is now; nil for one that gets it when its time comes.
local function place_in_line()
  if known.held then return known.lane, tonumber(known.score) end
  for _, lane in ipairs({ 'critical', 'normal' }) do
    local score = call('ZSCORE', place_key(lane, user), id)
    if score then return lane, tonumber(score) end
  end
  if known.score then return known.lane, tonumber(known.score) end
end
local lane, score = place_in_line()

-- As if it had been put in with that priority.
local function new_place()
  local came = lane == 'critical' and score or score + (old - 1) * step_us
  if priority == 6 then return 'critical', came end
  return 'normal', came - (priority - 1) * step_us
end

local function move(to, new_score)
  if known.held then
    for _, held in ipairs({ place_key('held', user), place_key('held', user) .. ':' .. known.held }) do
      local kept = tonumber(call('ZSCORE', held, id))
      if kept and kept >= 0 then call('ZADD', held, 'XX', new_score, id) end
    end
  elseif state == 'queued' then
    call('ZADD', place_key(to, user), new_score, id)
    if to ~= lane then call('ZREM', place_key(lane, user), id) end
  end
  if state == 'queued' then
    count(lane, -1)
    count(to, 1)
  end
  if known.score then call('HSET', key, 'lane', to, 'score', string.format('%.0f', new_score)) end
end

local function set_priority()
  if priority == 0 or priority == old then return false end
  call('SETRANGE', body_key(user, id), 17, string.char(priority))
  if lane then move(new_place()) end
  if call('HEXISTS', key, 'priority') == 1 then call('HSET', key, 'priority', priority) end
  return true
end

-- It goes on in the place in line that it had, if it had one.
local function put_off(due)
  if state == 'queued' then
    call('HSET', key, 'lane', lane, 'score', string.format('%.0f', score), 'priority', old)
  end
  take_out(user, id, state)
  schedule(user, id, due)
  call('HSET', key, 'state', 'scheduled')
end

local function bring_forward()
  take_out(user, id, state)
  local to, at = lane, score
  if not at then to, at = score_of(old, step_us) end
  call('HSET', key, 'state', 'queued', 'queued', now)
  if place(user, id, to, at) then wake(user, 1) end
end

-- One that waits for others has its moment behind that.
local function set_moment()
  local due = tonumber(start)
  if not due then due = now + tonumber(string.sub(start, 5)) end
  if state == 'deferred' then
    if due <= now and not known.delay and tonumber(known.due or 0) <= now then return false end
    call('HDEL', key, 'delay')
    call('HSET', key, 'due', due)
  elseif due > now then
    put_off(due)
  elseif state == 'scheduled' then
    bring_forward()
  else
    return false
  end
  return true
end

choice.know(user)
for _, where in ipairs({ 'critical', 'normal', 'scheduled', 'held' }) do call('ZCARD', place_key(where, user)) end
local has_changed = set_priority()
if start ~= '' then has_changed = set_moment() end
if not has_changed then return 'same' end
publish(user, id, 'waiting')
pass_room_on()
save_state()
return answer(nonce, 'changed')

#!lua flags=allow-oom
-- The schedules that are due, earliest first, unless another scheduler fires them. Those that ended long ago are forgotten
-- on the way.
-- KEYS[1]  state
-- Returns  {now, ms at which the scheduler looks again, ids that were set aside as they cannot be read, per schedule: {id, ms, user, name, spec, anchor, body, priority, delay, revision, slot}}
-- Cost     O(most + log schedules)
--@include base
--@include schedules
--@include schedule_keepers
--@arguments
local until_ms = now + ahead_ms
local broken = {}

local function is_whole(known)
  local user, spec, anchor, body, priority, revision, slot = known[1], known[3], known[4], known[5], known[6], known[8], known[9]
  return user and spec and body and revision and tonumber(anchor) and tonumber(priority) and tonumber(slot)
end

-- Where nobody else counts, all that is due is told.
local function split(listed)
  local due, next_ms = {}, nil
  for at = 1, #listed, 2 do
    local ms = tonumber(listed[at + 1])
    if ms > until_ms or #due == most then
      next_ms = ms
      break
    end
    due[#due + 1] = { listed[at], ms }
  end
  if scheduler == '' then return due, next_ms or -1 end
  local fires, look_at = take_part(scheduler, due[1] and due[1][2], next_ms)
  return fires and due or {}, look_at
end

local due, look_at = split(call('ZRANGE', schedules_key, 0, most, 'WITHSCORES'))
local found = { now, look_at, broken }
for _, each in ipairs(due) do
  local id, ms = each[1], each[2]
  local known = read_schedule(id, 'user', 'name', 'spec', 'anchor', 'body', 'priority', 'delay', 'revision', 'slot')
  if is_whole(known) then
    found[#found + 1] = { id, ms, unpack(known, 1, 9) }
  else
    broken[#broken + 1] = id
    call('ZREM', schedules_key, id)
    call('ZADD', broken_key, now_text, id)
  end
end
if broken[1] then call('ZREMRANGEBYSCORE', broken_key, '-inf', now - USER_TTL) end
for _, id in ipairs(call('ZRANGE', ended_key, '-inf', now_text, 'BYSCORE', 'LIMIT', 0, 10)) do forget_schedule(id) end
if save_bytes then save_bytes() end
return found

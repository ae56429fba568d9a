#!lua flags=allow-oom
-- The schedules that are due, earliest first. Those that ended long ago are forgotten on the way.
-- KEYS[1]  state
-- Returns  {now, ms at which the first of the others is due or -1, ids that were set aside as they cannot be read,
--          per schedule: {id, ms, user, name, spec, anchor, body, priority, delay, revision, slot}}
-- Cost     O(most + log schedules)
--@include base
--@include schedules
--@arguments
local until_ms = now + ahead_ms
local broken = {}
local found = { now, -1, broken }

local function is_whole(known)
  local user, spec, anchor, body, priority, revision, slot = known[1], known[3], known[4], known[5], known[6], known[8], known[9]
  return user and spec and body and revision and tonumber(anchor) and tonumber(priority) and tonumber(slot)
end

local first = call('ZRANGE', schedules_key, 0, most, 'WITHSCORES')
for at = 1, #first, 2 do
  local id, ms = first[at], tonumber(first[at + 1])
  if ms > until_ms or at > 2 * most then
    found[2] = ms
    break
  end
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

#!lua flags=allow-oom
-- The schedules that are due, earliest first. Those that ended long ago are forgotten on the way.
-- KEYS[1]  state
-- Returns  {now, ms at which the first of the others is due or -1, per schedule: {id, ms, user, name, spec, anchor, body,
--          priority, delay, revision, slot}}
-- Cost     O(most + log schedules)
--@include base
--@include schedules
--@arguments
local until_ms = now + ahead_ms
local found = { now, -1 }
local first = call('ZRANGE', schedules_key, 0, most, 'WITHSCORES')
for at = 1, #first, 2 do
  local id, ms = first[at], tonumber(first[at + 1])
  if ms > until_ms or at > 2 * most then
    found[2] = ms
    break
  end
  local known = call('HMGET', schedule_key(id), 'user', 'name', 'spec', 'anchor', 'body', 'priority', 'delay',
    'revision', 'slot')
  found[#found + 1] = { id, ms, unpack(known, 1, 9) }
end
for _, id in ipairs(call('ZRANGE', ended_key, '-inf', now_text, 'BYSCORE', 'LIMIT', 0, 10)) do forget_schedule(id) end
return found

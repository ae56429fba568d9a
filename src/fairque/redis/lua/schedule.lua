#!lua
-- Write a schedule: a new one, or one that is as its writer has read it.
-- KEYS[1]  state
-- Returns  'done' (also by an earlier try of the same call) | 'exists' | 'missing' | 'changed' (since it was read) |
--          {'heavy', user, bytes used, limit, bytes asked for, ms}
-- Cost     O(log schedules)
--@include base
--@include schedules
--@arguments
local key = schedule_key(id)
local known = read_schedule(id, 'revision', 'state', 'user')
if known[1] == revision then return 'done' end
if read ~= '' then
  if not known[1] then return 'missing' end
  if known[1] ~= read then return 'changed' end
elseif known[1] and known[2] ~= 'ended' then
  return 'exists'
end
if bytes then
  local more = known[3] == user and -call('HSTRLEN', key, 'body') or 0
  for _, field in ipairs(fields) do
    --@fields Field field
    if name == 'body' then more = more + #value end
  end
  local too_heavy = bytes.refuse(user, more)
  if too_heavy then return too_heavy end
end
if read == '' then forget_schedule(id) end
if known[3] then weigh_schedule(known[3], id, -1) end
if known[3] and known[3] ~= user then call('ZREM', index_key, known[3] .. ':' .. id) end
call('HSET', key, 'revision', revision, 'user', user)
if read == '' then call('HSET', key, 'created', now_text) end
for _, field in ipairs(fields) do
  --@fields Field field
  if value == '' then call('HDEL', key, name) else call('HSET', key, name, value) end
end
weigh_schedule(user, id, 1)
if save_bytes then save_bytes() end
if next_ms == '' then
  call('ZREM', schedules_key, id)
elseif next_ms ~= 'keep' then
  call('ZADD', schedules_key, next_ms, id)
end
call('ZADD', index_key, 0, user .. ':' .. id)
call('PUBLISH', prefix .. 'schedules', '')
return 'done'

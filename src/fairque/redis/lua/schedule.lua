#!lua
-- Write a schedule: a new one, or one that is as its writer has read it.
-- KEYS[1]  state
-- ARGV     id, user, revision that was read or '' for a new one, revision from now on, what becomes of the next firing:
--          'keep' | '' (none) | ms, then fields and values; a field without a value is removed
-- Returns  'done' (also by an earlier try of the same call) | 'exists' | 'missing' | 'changed' (since it was read)
-- Cost     O(log schedules)
--@include base
--@include schedules
local id, user, read, revision, next_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key = schedule_key(id)
local known = call('HMGET', key, 'revision', 'state', 'user')
if known[1] == revision then return 'done' end
if read ~= '' then
  if not known[1] then return 'missing' end
  if known[1] ~= read then return 'changed' end
elseif known[1] then
  if known[2] ~= 'ended' then return 'exists' end
  forget_schedule(id)
end
if known[3] and known[3] ~= user then call('ZREM', index_key, known[3] .. ':' .. id) end
call('HSET', key, 'revision', revision, 'user', user)
if read == '' then call('HSET', key, 'created', now_text) end
for at = 6, #ARGV, 2 do
  if ARGV[at + 1] == '' then call('HDEL', key, ARGV[at]) else call('HSET', key, ARGV[at], ARGV[at + 1]) end
end
if next_ms == '' then
  call('ZREM', schedules_key, id)
elseif next_ms ~= 'keep' then
  call('ZADD', schedules_key, next_ms, id)
end
call('ZADD', index_key, 0, user .. ':' .. id)
call('PUBLISH', prefix .. 'schedules', '')
return 'done'

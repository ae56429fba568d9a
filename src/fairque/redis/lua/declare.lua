#!lua
-- Say which schedules the code of a process declares, now and then while it runs. The definition that a living process
-- brought last counts; an older one comes back only when nobody who knows the newer one is left.
-- KEYS[1]  state
-- Returns  {per schedule: 'same' | 'absent' | 'differs' | 'older' (a newer one counts) | 'taken' (not a declared one)},
--          {declared ids that nobody declares any more, at most 100}
-- Cost     O((schedules + 100) log schedules)
--@include base
--@include schedules
--@arguments
local declarers_key = prefix .. 'declarers'
local oldest = string.format('%d', now - ttl_ms)

local function verdict(id, definition)
  local known = read_schedule(id, 'user', 'declared', 'older')
  if not known[1] then return 'absent' end
  if not known[2] then return 'taken' end
  call('ZADD', declared_key, now_text, id)
  call('HDEL', schedule_key(id), 'orphaned')
  if known[2] == definition then return 'same' end
  local is_old = string.find(known[3] or '', definition, 1, true)
  if is_old and call('ZSCORE', declarers_key, known[2] .. ' ' .. id) then return 'older' end
  return 'differs'
end

call('ZREMRANGEBYSCORE', declarers_key, '-inf', oldest)
local verdicts = {}
for at, declaration in ipairs(declarations) do
  --@fields Declaration declaration
  verdicts[at] = verdict(id, definition)
  call('ZADD', declarers_key, now_text, definition .. ' ' .. id)
  call('PEXPIRE', declarers_key, 2 * ttl_ms)
end
local orphans = call('ZRANGE', declared_key, '-inf', oldest, 'BYSCORE', 'LIMIT', 0, 100)
for _, id in ipairs(orphans) do
  if read_schedule(id, 'user')[1] then call('HSET', schedule_key(id), 'orphaned', '1') end
end
return { verdicts, orphans }

#!lua flags=allow-oom
-- Set the limits of task names, over all users.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(names)
--@include base
--@include state
--@include wake
--@arguments
for _, limit in ipairs(limits) do
  --@fields NamedLimit limit
  local key = prefix .. 'limit:' .. name
  local before = call('EXISTS', key)
  if max or interval_us then
    call('HDEL', key, 'max', 'rate_us', 'burst', 'declared')
    if max then call('HSET', key, 'max', max) end
    if interval_us then call('HSET', key, 'rate_us', interval_us, 'burst', burst) end
    if declared then call('HSET', key, 'declared', 1) end
  elseif not declared or call('HEXISTS', key, 'declared') == 1 then
    call('DEL', key)
  end
  local exists = call('EXISTS', key)
  if exists == 1 then
    call('ZADD', prefix .. 'limit-names', 0, name)
  else
    call('ZREM', prefix .. 'limit-names', name)
  end
  count('limits', exists - before)
  if call('ZADD', prefix .. 'held', 'XX', 'CH', now, name) == 1 then wake_from(prefix .. 'waiting', 1) end
end
save_state()
-- What is held still has to come back.
if call('HGET', state_key, 'limits') == '0' and call('EXISTS', prefix .. 'held') == 0 then
  call('HDEL', state_key, 'limits')
end
return 1

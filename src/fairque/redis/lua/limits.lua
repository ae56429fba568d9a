#!lua flags=allow-oom
-- Set the limits of task names, over all users.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(names)
--@include base
--@include state
--@include alive
--@include wake
--@arguments
local uncounted_key = prefix .. 'uncounted'

-- What runs counts from the beginning. Until the claims that follow have counted it, starts wait (lib/limits.lua).
local function begin_count(key, name)
  if call('EXISTS', leases_key) == 0 then return end
  call('HSET', key, 'uncounted', 1)
  call('SADD', uncounted_key, name)
  call('HSET', state_key, 'recount', '0')
end

local function end_count(name)
  if call('SREM', uncounted_key, name) == 1 and call('EXISTS', uncounted_key) == 0 then
    call('HDEL', state_key, 'recount')
  end
end

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
    if before == 0 then begin_count(key, name) end
  else
    call('ZREM', prefix .. 'limit-names', name)
    end_count(name)
  end
  count('limits', exists - before)
  if call('ZADD', prefix .. 'held', 'XX', 'CH', now, name) == 1 and wake_from(prefix .. 'waiting', 1) > 0 then tell_all_workers() end
end
save_state()
-- What is held still has to come back.
if call('HGET', state_key, 'limits') == '0' and call('EXISTS', prefix .. 'held') == 0 then
  call('HDEL', state_key, 'limits')
end
return 1

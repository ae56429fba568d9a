#!lua flags=allow-oom
-- A worker's heartbeat, and its running deliveries kept alive.
-- KEYS[1]  state
-- Returns  {positions (from 0) of the deliveries that are no longer its own, positions of those that were canceled}
-- Cost     O(deliveries)
--@include base
--@arguments
local entry, flat = prefix .. 'worker:' .. worker, {}
for field, value in pairs(fields) do
  flat[#flat + 1] = field
  flat[#flat + 1] = value
end
call('ZADD', prefix .. 'workers', now, worker)
call('ZREMRANGEBYSCORE', prefix .. 'workers', '-inf', now - ttl_ms)
call('HSET', entry, 'seen', now, unpack(flat))
call('PEXPIRE', entry, ttl_ms)

local lost, canceled = {}, {}
for at, delivery in ipairs(deliveries) do
  --@fields HeldDelivery delivery
  local known = call('HMGET', task_key(user, id), 'stream_id', 'attempt', 'canceling')
  if known[1] == stream_id and tonumber(known[2]) == attempt then
    call('XCLAIM', stream_key(lane, user), 'workers', worker, 0, stream_id, 'JUSTID')
    if known[3] then canceled[#canceled + 1] = at - 1 end
  else
    lost[#lost + 1] = at - 1
  end
end
return { lost, canceled }

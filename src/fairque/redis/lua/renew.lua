#!lua flags=allow-oom
-- A worker's heartbeat, and its running deliveries kept alive.
-- KEYS[1]  state
-- ARGV     worker, TTL of its entry in ms, number of its fields, field, value ..., then per delivery: lane, user, id,
--          stream id, attempt
-- Returns  {positions (from 0) of the deliveries that are no longer its own, positions of those that were canceled}
-- Cost     O(deliveries)
--@include base
local worker, ttl, fields = ARGV[1], ARGV[2], tonumber(ARGV[3])
local entry = prefix .. 'worker:' .. worker
call('ZADD', prefix .. 'workers', now, worker)
call('ZREMRANGEBYSCORE', prefix .. 'workers', '-inf', now - ttl)
call('HSET', entry, 'seen', now, unpack(ARGV, 4, 3 + fields * 2))
call('PEXPIRE', entry, ttl)

local lost, canceled = {}, {}
local first = 4 + fields * 2
for at = first, #ARGV, 5 do
  local lane, user, id, stream_id = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local known = call('HMGET', task_key(user, id), 'stream_id', 'attempt', 'canceling')
  if known[1] == stream_id and known[2] == ARGV[at + 4] then
    call('XCLAIM', stream_key(lane, user), 'workers', worker, 0, stream_id, 'JUSTID')
    if known[3] then canceled[#canceled + 1] = (at - first) / 5 end
  else
    lost[#lost + 1] = (at - first) / 5
  end
end
return { lost, canceled }

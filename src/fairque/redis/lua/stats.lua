#!lua flags=no-writes
-- Totals of the queue and its workers.
-- KEYS[1]  state
-- Returns  {state fields, users ready, users known, per worker: {name, fields}, now, metrics}
-- Cost     O(workers)
--@include base
--@arguments
local workers = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', prefix .. 'workers', now - silent_ms, '+inf')) do
  workers[#workers + 1] = { worker, call('HGETALL', prefix .. 'worker:' .. worker) }
end
return { call('HGETALL', state_key), call('ZCARD', ready_key), call('ZCARD', users_key), workers, now,
  call('GET', prefix .. 'metrics:*') or '' }

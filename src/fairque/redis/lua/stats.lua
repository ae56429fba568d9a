#!lua flags=no-writes
-- Totals of the queue and its workers.
-- KEYS[1]  state
-- ARGV     ms after which a silent worker is not listed
-- Returns  {state fields, users ready, users known, per worker: {name, fields}, now, metrics}
-- Cost     O(workers)
--@include base
local workers = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', prefix .. 'workers', now - ARGV[1], '+inf')) do
  workers[#workers + 1] = { worker, call('HGETALL', prefix .. 'worker:' .. worker) }
end
return { call('HGETALL', state_key), call('ZCARD', ready_key), call('ZCARD', users_key), workers, now,
  call('GET', prefix .. 'metrics:*') or '' }

#!lua flags=no-writes
-- Totals of the queue and its workers.
-- KEYS[1]  state
-- Returns  {state fields, users ready, users known, per worker: {name, fields}, now, metrics,
--          at most 100 records of names that are paused}
-- Cost     O(workers)
--@include base
--@include live_workers
--@arguments
return { call('HGETALL', state_key), call('ZCARD', ready_key), call('ZCARD', users_key), live_workers(silent_ms), now,
  call('GET', prefix .. 'metrics:*') or '', call('SRANDMEMBER', prefix .. 'paused-tasks', 100) }

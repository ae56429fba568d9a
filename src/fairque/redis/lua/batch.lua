#!lua flags=no-writes
-- How far a batch is.
-- KEYS[1]  state
-- Returns  state, total, finished, failed, canceled, ms when it was opened, ms when all had ended: each as text or nil
-- Cost     O(1)
--@include base
--@include moved
--@arguments
refuse_moved(user)
return call('HMGET', prefix .. 'batch:' .. user .. ':' .. batch, 'state', 'total', 'finished', 'failed', 'canceled', 'created',
  'complete')

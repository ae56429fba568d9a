#!lua flags=no-writes
-- Everything known of one task.
-- KEYS[1]  state
-- Returns  {task fields, body or '', result record or '', error records, score in its lane or '', at most 1,000 of
--          those that wait for it, ms at which it is due or ''}
-- Cost     O(size of the task)
--@include base
--@arguments
local due = call('ZSCORE', place_key('scheduled', user), id)
return {
  call('HGETALL', task_key(user, id)),
  call('GET', body_key(user, id)) or '',
  call('GET', result_key(user, id)) or '',
  call('LRANGE', errors_key(user, id), 0, -1),
  call('ZSCORE', place_key('critical', user), id) or call('ZSCORE', place_key('normal', user), id) or '',
  call('SRANDMEMBER', feeds_key(user, id), 1000),
  due and string.format('%d', due) or '',
}

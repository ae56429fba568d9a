#!lua flags=no-writes
-- Where a task stands, without its body and errors.
-- KEYS[1]  state
-- Returns  {result record or '', state of a task that has not ended, or nil when it is not known}
-- Cost     O(size of the result)
--@include base
--@arguments
local record = call('GET', result_key(user, id))
if record then return { record, false } end
if call('EXISTS', body_key(user, id)) == 0 then return { '', false } end
return { '', call('HGET', task_key(user, id), 'state') or 'queued' }

#!lua
-- How far a running task is.
-- KEYS[1]  state
-- Returns  1 noted, 0 it is no longer this worker's
-- Cost     O(1)
--@include base
--@include absent
--@arguments
refuse_leaving(user)
local key = task_key(user, id)
local known = call('HMGET', key, 'stream_id', 'attempt')
if known[1] ~= stream_id or attempt_in(known[2]) ~= attempt then return 0 end
-- With its delivery, so that it is not taken for that of a later attempt; a steal keeps the stream id.
call('HSET', key, 'progress', fraction, 'message', message, 'progress_of', stream_id .. ' ' .. attempt)
publish(user, id, 'progress')
return 1

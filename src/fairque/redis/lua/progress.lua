#!lua
-- How far a running task is.
-- KEYS[1]  state
-- ARGV     user, id, stream id, attempt, fraction, message
-- Returns  1 noted, 0 it is no longer this worker's
-- Cost     O(1)
--@include base
local user, id = ARGV[1], ARGV[2]
local key = task_key(user, id)
local known = call('HMGET', key, 'stream_id', 'attempt')
if known[1] ~= ARGV[3] or known[2] ~= ARGV[4] then return 0 end
call('HSET', key, 'progress', ARGV[5], 'message', ARGV[6])
publish(user, id, 'progress')
return 1

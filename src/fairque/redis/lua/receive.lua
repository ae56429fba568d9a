#!lua flags=allow-oom
-- A suspect has arrived at its worker, and runs from now on: if the worker dies, that counts.
-- KEYS[1]  state
-- Returns  1 noted, 0 or less it is no longer this worker's: lib/whereabouts.lua has why
-- Cost     O(1)
--@include base
--@include absent
--@include whereabouts
--@include renewal
--@arguments
refuse_leaving(user)
local key = task_key(user, id)
local known = call('HMGET', key, 'stream_id', 'attempt')
if known[1] ~= stream_id or attempt_in(known[2]) ~= attempt then return whereabouts(user, id, worker) end
renew_lease(user, id, lane, stream_id, worker)
call('HSET', key, 'received', attempt)
call('ZADD', prefix .. 'workers', now, worker)
return 1

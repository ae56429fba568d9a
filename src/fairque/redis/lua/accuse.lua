#!lua flags=allow-oom
-- A task stands in the way of everything in its worker, which ends for that: of this death it is known who caused it.
-- KEYS[1]  state
-- Returns  1 noted, 0 it is no longer this worker's
-- Cost     O(1)
--@include base
--@include absent
--@arguments
refuse_leaving(user)
local LONG_MS = 1000000000000 -- it counts, however long ago the task began
local key = task_key(user, id)
local known = call('HMGET', key, 'stream_id', 'attempt', 'worker', 'lost', 'tried')
if known[1] ~= stream_id or attempt_in(known[2]) ~= attempt or known[3] ~= worker then return 0 end
call('HSET', key, 'attempt', attempt, 'received', attempt, 'lost', known[4] or 0, 'tried',
  math.max(1, tonumber(known[5] or 0)), 'alone', LONG_MS)
return 1

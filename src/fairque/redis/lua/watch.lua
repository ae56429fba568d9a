#!lua
-- Have the start of a living task announced, which nobody pays for otherwise.
-- KEYS[1]  state
-- Returns  1 it lives, 0 it does not
-- Cost     O(1)
--@include base
--@include absent
--@arguments
refuse_absent(user)
if call('EXISTS', body_key(user, id)) == 0 then return 0 end
local key = task_key(user, id)
call('HSETNX', key, 'state', 'queued') -- a claim looks closer at a task that has fields already
call('HSET', key, 'watched', 1)
return 1

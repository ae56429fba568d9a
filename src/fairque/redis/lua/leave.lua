#!lua flags=allow-oom
-- A worker says goodbye: nobody wakes it or lists it any more.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(users named)
--@include base
--@arguments
call('ZREM', prefix .. 'workers', worker)
call('DEL', prefix .. 'worker:' .. worker)
call('SREM', prefix .. 'waiting', worker)
for _, user in ipairs(users) do call('SREM', prefix .. 'waiting:' .. user, worker) end
return 1

#!lua flags=allow-oom
-- A worker says goodbye: nobody wakes it or lists it any more.
-- KEYS[1]  state
-- ARGV     worker, the users it served by name ...
-- Returns  1
-- Cost     O(users named)
--@include base
local worker = ARGV[1]
call('ZREM', prefix .. 'workers', worker)
call('DEL', prefix .. 'worker:' .. worker)
call('SREM', prefix .. 'waiting', worker)
for at = 2, #ARGV do call('SREM', prefix .. 'waiting:' .. ARGV[at], worker) end
return 1

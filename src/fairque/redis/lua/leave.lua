#!lua flags=allow-oom
-- A worker says goodbye: nobody wakes it or lists it any more. Another
-- one looks instead: this one may have been told of work, or may have known a moment.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(assignments); the last one of an assignment begins to release its users, 100 in this call
--@include base
--@include state
--@include fair
--@include wake
--@include keeper
--@arguments
call('ZREM', prefix .. 'workers', worker)
local slots = call('HGET', prefix .. 'worker:' .. worker, 'concurrency')
if slots then call('HINCRBY', state_key, 'slots', -slots) end
call('DEL', prefix .. 'worker:' .. worker, prefix .. 'claimed:' .. worker, prefix .. 'resting:' .. worker)
call('SREM', prefix .. 'waiting', worker)
for _, name in ipairs(groups) do
  call('SREM', prefix .. 'waiting:' .. name, worker)
  assignments.leave(name, worker)
end
if has_assigned then assignments.tidy() end
new_keeping(worker).forget()
local untold = 1
for _, name in ipairs(groups) do
  if untold > 0 then untold = wake_from(prefix .. 'waiting:' .. name, 1) end
end
if untold > 0 then wake_from(prefix .. 'waiting', 1) end
save_state()
return 1

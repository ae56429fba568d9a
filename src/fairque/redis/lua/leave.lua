#!lua flags=allow-oom
-- A worker says goodbye: nobody wakes it or lists it any more, and what it served users of its own is forgiven. Another
-- one looks instead: this one may have been told of work, or may have known a moment.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(users named)
--@include base
--@include state
--@include fair
--@include wake
--@include keeper
--@arguments
call('ZREM', prefix .. 'workers', worker)
local slots = call('HGET', prefix .. 'worker:' .. worker, 'concurrency')
if slots then call('HINCRBY', state_key, 'slots', -slots) end
call('DEL', prefix .. 'worker:' .. worker)
call('SREM', prefix .. 'waiting', worker)
for _, user in ipairs(users) do
  call('SREM', prefix .. 'waiting:' .. user, worker)
  fair().forgive(nodes.user(user))
end
new_keeping(worker).forget()
local untold = 1
for _, user in ipairs(users) do
  if untold > 0 then untold = wake_from(prefix .. 'waiting:' .. user, 1) end
end
if untold > 0 then wake_from(prefix .. 'waiting', 1) end
save_state()
return 1

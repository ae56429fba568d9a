#!lua flags=allow-oom
-- A worker says goodbye: nobody wakes it or lists it any more, and what it served users of its own is forgiven.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(users named)
--@include base
--@include state
--@include fair
--@arguments
call('ZREM', prefix .. 'workers', worker)
call('DEL', prefix .. 'worker:' .. worker)
call('SREM', prefix .. 'waiting', worker)
governed = governed or new_government()
for _, user in ipairs(users) do
  call('SREM', prefix .. 'waiting:' .. user, worker)
  governed.forgive(governed.user(user))
end
return 1

#!lua flags=allow-oom
-- A user leaves this partition: all of it is in the other one, and from now on it lives there, whatever becomes of its mover.
-- Or an import does, which is complete with that.
-- KEYS[1]  state
-- Returns  1, or 0 where it stands still no more, or by another's will: nothing has changed then
-- Cost     O(log users)
--@include base
--@include state
--@include alive
--@include fair
--@include frozen
--@include moved
--@include moves
--@arguments
local record = string.format('%d %.0f ', partition, epoch) .. token
if call('HGET', departing_key, user) == record then return 1 end
local known = call('HMGET', frozen_key(user), 'token', 'why', 'leaves_until')
if known[1] ~= token or not (known[2] == 'move' or tonumber(known[3] or 0) > now) then return 0 end
choice.know(user)
if not mark_moved(user, partition, epoch) then return 0 end
call('HSET', departing_key, user, record)
call('PERSIST', manifest_key(user))
note_mover(user)
stand_no_more(user)
nodes.forget_own_tag(nodes.user(user))
for total, number in pairs(taken) do count(total, -number) end
save_state()
return 1

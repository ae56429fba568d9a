#!lua flags=allow-oom
-- Say where a user lives who does not live here, and to whom a name leads here: it was moved from another partition. Or
-- where a group lives, by the name of its root.
-- KEYS[1]  state
-- Returns  1, 0 where a later move is known, or -1 where the user lives here
-- Cost     O(log users)
--@include base
--@include moved
--@arguments
if partition < 0 then -- a group: it lives here, whatever was said before
  unmark_moved(user)
  return 1
end
if call('ZSCORE', users_key, user) then return -1 end
return mark_moved(user, partition, epoch) and 1 or 0

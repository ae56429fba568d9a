#!lua flags=allow-oom
-- Say where a user lives who does not live here, and to whom a name leads here: it was moved from another partition.
-- KEYS[1]  state
-- Returns  1, 0 where a later move is known, or -1 where the user lives here
-- Cost     O(log users)
--@include base
--@include moved
--@arguments
if call('ZSCORE', users_key, user) then return -1 end
return mark_moved(user, partition, epoch) and 1 or 0

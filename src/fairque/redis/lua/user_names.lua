#!lua flags=no-writes
-- Names of users, the most recently active first.
-- KEYS[1]  state
-- Returns  {users known, user, ms when it last was active ...}
-- Cost     O(log² users + returned)
--@include base
--@include ranks
--@arguments
local known = call('ZCARD', users_key)
local first = after == '' and 0 or known - rank_at(users_key, after_ms, after, false)
return { known, unpack(call('ZREVRANGE', users_key, first, first + most - 1, 'WITHSCORES')) }

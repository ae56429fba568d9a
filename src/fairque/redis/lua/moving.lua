#!lua flags=no-writes
-- How far the move of a user is, as this partition knows it.
-- KEYS[1]  state
-- Returns  {'' or what `departing` has of it, '' or what `moved` has, fields and values of frozen:<u>}
-- Cost     O(1)
--@include base
--@include frozen
--@include moved
--@include moves
--@arguments
return { call('HGET', departing_key, user) or '', moved_to(user) or '', call('HGETALL', frozen_key(user)) }

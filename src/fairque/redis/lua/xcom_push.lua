#!lua
-- Share a value among the tasks of a user.
-- KEYS[1]  state
-- ARGV     user, namespace, key, value, ttl in ms
-- Returns  1
-- Cost     O(log values), plus at most 16 expired ones removed
--@include base
--@include xcom
new_xcom().push(unpack(ARGV))
return 1

#!lua
-- Share a value among the tasks of a user.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(log values), plus at most 16 expired ones removed
--@include base
--@include xcom
--@arguments
new_xcom().push(user, namespace, key, value, ttl_ms)
return 1

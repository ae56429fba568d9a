#!lua flags=allow-oom
-- Remove all values of a namespace.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(1)
--@include xcom
--@arguments
new_xcom().clear(user, namespace)
return 1

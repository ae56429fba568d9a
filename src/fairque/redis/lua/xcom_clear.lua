#!lua flags=allow-oom
-- Remove all values of a namespace.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(1)
--@include xcom
--@arguments
refuse_absent(user)
new_xcom().clear(user, namespace)
return 1

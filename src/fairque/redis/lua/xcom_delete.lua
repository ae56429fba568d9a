#!lua flags=allow-oom
-- Remove values that the tasks of a user share.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(keys log values)
--@include xcom
--@arguments
refuse_absent(user)
new_xcom().remove(user, namespace, keys)
if save_bytes then save_bytes() end
return 1

#!lua
-- Share a value among the tasks of a user.
-- KEYS[1]  state
-- Returns  1, or {'heavy', user, bytes used, limit, bytes asked for, ms}: nothing was written
-- Cost     O(log values), plus at most 16 expired ones removed
--@include base
--@include xcom
--@arguments
refuse_absent(user)
local xcom = new_xcom()
local too_heavy = bytes and bytes.refuse(user, xcom.size(key, value))
if too_heavy then return too_heavy end
xcom.push(user, namespace, key, value, ttl_ms)
if save_bytes then save_bytes() end
return 1

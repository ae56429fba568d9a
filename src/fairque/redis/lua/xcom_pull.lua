#!lua flags=allow-oom
-- Read values that the tasks of a user share.
-- KEYS[1]  state
-- Returns  per key its value from the first namespace that has it, or nil
-- Cost     O(namespaces keys), plus at most 16 expired values removed per namespace
--@include xcom
--@arguments
refuse_moved(user)
local xcom, found = new_xcom(), {}

local function first_value(key)
  for _, namespace in ipairs(namespaces) do
    local value = xcom.pull(user, namespace, key)
    if value then return value end
  end
  return false
end

for at, key in ipairs(keys) do found[at] = first_value(key) end
for _, namespace in ipairs(namespaces) do xcom.sweep(user, namespace) end
if save_bytes then save_bytes() end
return found

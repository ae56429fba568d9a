#!lua flags=allow-oom
-- Remove schedules.
-- KEYS[1]  state
-- Returns  how many there were
-- Cost     O(ids log schedules)
--@include base
--@include absent
--@include once
--@include schedules
--@arguments
local before = answered(nonce)
if before then return before end
local found, removed = {}, 0
for _, id in ipairs(ids) do
  local user = read_schedule(id, 'user')[1]
  if not user or not moved_to(user) then -- all partitions are told
    found[#found + 1] = id
    if user then refuse_frozen(user) end
  end
end
for _, id in ipairs(found) do removed = removed + forget_schedule(id) end
if save_bytes then save_bytes() end
return answer(nonce, removed)

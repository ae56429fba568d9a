#!lua flags=allow-oom
-- Remove schedules.
-- KEYS[1]  state
-- Returns  how many there were
-- Cost     O(ids log schedules)
--@include base
--@include frozen
--@include once
--@include schedules
--@arguments
local before = answered(nonce)
if before then return before end
for _, id in ipairs(ids) do
  local user = read_schedule(id, 'user')[1]
  if user then refuse_frozen(user) end
end
local removed = 0
for _, id in ipairs(ids) do removed = removed + forget_schedule(id) end
if save_bytes then save_bytes() end
return answer(nonce, removed)

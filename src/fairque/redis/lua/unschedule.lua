#!lua flags=allow-oom
-- Remove schedules.
-- KEYS[1]  state
-- ARGV     ids
-- Returns  how many there were
-- Cost     O(ids log schedules)
--@include base
--@include schedules
local removed = 0
for _, id in ipairs(ARGV) do removed = removed + forget_schedule(id) end
return removed

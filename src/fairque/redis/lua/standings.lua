#!lua flags=no-writes
-- Where several tasks of a user stand.
-- KEYS[1]  state
-- Returns  per id: {its state or '', 1 when it waits for a dead letter, in the end}; behind them, at most 5 of those
-- Cost     O(ids + what those that are deferred wait for, 5,000 members at most)
--@include base
--@include moved
--@include standing
--@arguments
refuse_moved(user)
local outlook, found = new_outlook(user), {}
for at, id in ipairs(ids) do
  local state = standing_of(user, id)
  found[at] = { state, state == 'deferred' and outlook.is_blocked(id) and 1 or 0 }
end
found[#found + 1] = outlook.blockers
return found

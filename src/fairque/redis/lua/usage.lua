#!lua flags=no-writes
-- What a user used, hour by hour.
-- KEYS[1]  state
-- Returns  {now, metrics, per day: hour, msgpack [tasks, cost, busy seconds] ...}
-- Cost     O(days)
--@include base
--@include moved
--@arguments
refuse_moved(user)
local found = { now, call('GET', prefix .. 'metrics:' .. user) or '' }
for at, day in ipairs(days) do found[at + 2] = call('HGETALL', prefix .. 'usage:' .. user .. ':' .. day) end
return found

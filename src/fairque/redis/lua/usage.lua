#!lua flags=no-writes
-- What a user used, hour by hour.
-- KEYS[1]  state
-- ARGV     user ('*': all), days since the epoch ...
-- Returns  {now, metrics, per day: hour, msgpack [tasks, cost, busy seconds] ...}
-- Cost     O(days)
--@include base
local found = { now, call('GET', prefix .. 'metrics:' .. ARGV[1]) or '' }
for at = 2, #ARGV do found[at + 1] = call('HGETALL', prefix .. 'usage:' .. ARGV[1] .. ':' .. ARGV[at]) end
return found

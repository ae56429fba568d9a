#!lua
-- Set or clear the policy of a user.
-- KEYS[1]  state
-- ARGV     user, field, value ... (no fields: clear it)
-- Returns  the fields now set, as field, value ...
-- Cost     O(fields)
--@include base
local key = prefix .. 'policy:' .. ARGV[1]
local before = call('EXISTS', key)
if #ARGV == 1 then call('DEL', key) else call('HSET', key, unpack(ARGV, 2)) end
count('policies', call('EXISTS', key) - before)
save_counts()
-- Claims skip the policies of a queue that has none.
if call('HGET', state_key, 'policies') == '0' then call('HDEL', state_key, 'policies') end
return call('HGETALL', key)

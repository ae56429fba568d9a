#!lua flags=no-writes
-- Who has the most running tasks.
-- KEYS[1]  state
-- Returns  {1 where others were not looked at, users, the one with the most first ...}
-- Cost     O(lanes looked at)
--@include base
--@arguments
local users, running = {}, {}
for _, member in ipairs(call('ZRANGE', leases_key, 0, lanes - 1)) do
  local lane, user = string.match(member, '^([^:]+):(.*)$')
  local held = redis.pcall('XLEN', stream_key(lane, user)) -- what is damaged of one is not the others'
  if not running[user] then users[#users + 1] = user end
  running[user] = (running[user] or 0) + (tonumber(held) or 0)
end
table.sort(users, function(one, other)
  if running[one] ~= running[other] then return running[one] > running[other] end
  return one < other
end)
return { call('ZCARD', leases_key) > lanes and 1 or 0, unpack(users, 1, math.min(most, #users)) }

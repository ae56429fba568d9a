#!lua flags=no-writes
-- The users that have a policy of their own, the groups that have a weight, or the task names that are limited: a page of
-- them in the order of their names, and what was set.
-- KEYS[1]  state
-- Returns  per name {name, policy as a msgpack map}, per task name {name, {most that run at once or nil, us between two
--          starts or nil, burst or nil, 1 when the code of a worker said so or nil}}
-- Cost     O(log names + limit)
--@include base
--@arguments
local found = {}
local names = call('ZRANGEBYLEX', prefix .. index, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, most)
for at, name in ipairs(names) do
  if index == 'limit-names' then
    found[at] = { name, call('HMGET', prefix .. 'limit:' .. name, 'max', 'rate_us', 'burst', 'declared') }
  else
    found[at] = { name, call('GET', prefix .. 'policy:' .. name) or '' }
  end
end
return found

#!lua flags=no-writes
-- The users that have a policy of their own, the groups that have a weight, or the limits: a page of them in the
-- order of their names, and what was set.
-- KEYS[1]  state
-- Returns  per name {name, policy as a msgpack map}, per limit {its record, {hand or code, most that run at
--          once or nil, us between two starts or nil, burst or nil, how many run, where it has no template, 1 where it is paused}}
-- Cost     O(log names + limit)
--@include base
--@arguments
local found = {}
local names = call('ZRANGEBYLEX', prefix .. index, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, most)
for at, name in ipairs(names) do
  if index == 'limit-keys' then
    local row = call('HMGET', prefix .. 'limit:' .. name, 'by', 'max', 'rate_us', 'burst')
    row[5] = call('SCARD', prefix .. 'running:' .. name)
    row[6] = call('HEXISTS', prefix .. 'limit:' .. name, 'paused')
    found[at] = { name, row }
  else
    found[at] = { name, call('GET', prefix .. 'policy:' .. name) or '' }
  end
end
return found

#!lua flags=no-writes
-- The users that have a policy of their own, the groups that have a weight, or the limits: a page of them in the
-- order of their names, and what was set.
-- KEYS[1]  state
-- Returns  per name {name, policy as a msgpack map, nil where its key is something else: nobody else's stays untold for
--          that}, and of whom another partition may have as well the third: 1, it is on its way here, or 2, it has left;
--          per limit {its record, {hand or code, most that run at once or nil, us between two starts or nil, burst or nil,
--          how many run, where it has no template, 1 where it is paused}}
-- Cost     O(log names + limit)
--@include base
--@include frozen
--@include moved
--@arguments
local found = {}
local names = call('ZRANGEBYLEX', prefix .. index, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, most)
local moves = call('HMGET', state_key, 'moved', 'moves')
local may_be_elsewhere = moves[1] or moves[2]
local function leaning(whose)
  if call('HGET', frozen_key(whose), 'why') == 'arrive' then return 1 end
  return moved_to(string.match(whose, '^@[^/]+') or whose) and 2 or nil
end
for at, name in ipairs(names) do
  if index == 'limit-keys' then
    local row = call('HMGET', prefix .. 'limit:' .. name, 'by', 'max', 'rate_us', 'burst')
    row[5] = call('SCARD', prefix .. 'running:' .. name)
    row[6] = call('HEXISTS', prefix .. 'limit:' .. name, 'paused')
    found[at] = { name, row }
  else
    local kept = redis.pcall('GET', prefix .. 'policy:' .. name)
    if type(kept) == 'table' then kept = false else kept = kept or '' end
    found[at] = { name, kept, may_be_elsewhere and leaning(name) or nil }
  end
end
return found

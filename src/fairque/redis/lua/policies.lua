#!lua flags=no-writes
-- Policies as they were set.
-- KEYS[1]  state
-- ARGV     whose: users, '@' and a group, '*'
-- Returns  per name a msgpack map, '' where nothing was set
-- Cost     O(names)
--@include base
local found = {}
for at, whose in ipairs(ARGV) do found[at] = call('GET', prefix .. 'policy:' .. whose) or '' end
return found

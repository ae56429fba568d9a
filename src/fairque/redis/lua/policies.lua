#!lua flags=no-writes
-- Policies as they were set.
-- KEYS[1]  state
-- Returns  per name a msgpack map, '' where nothing was set
-- Cost     O(names)
--@include base
--@include moved
--@arguments
local owners = {}
for at, whose in ipairs(names) do owners[at] = string.match(whose, '^@[^/]+') or whose end
refuse_all_moved(owners)
local found = {}
for at, whose in ipairs(names) do found[at] = call('GET', prefix .. 'policy:' .. whose) or '' end
return found

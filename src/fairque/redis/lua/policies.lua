#!lua flags=no-writes
-- Policies as they were set.
-- KEYS[1]  state
-- Returns  per name a msgpack map, '' where nothing was set
-- Cost     O(names)
--@include base
--@include moved
--@arguments
refuse_all_moved(names)
local found = {}
for at, whose in ipairs(names) do found[at] = call('GET', prefix .. 'policy:' .. whose) or '' end
return found

#!lua flags=no-writes
-- The result records of tasks of one user.
-- KEYS[1]  state
-- Returns  per id: the record, or nil
-- Cost     O(size of the records)
--@include base
--@include moved
--@arguments
refuse_moved(user)
local records = {}
for at, id in ipairs(ids) do records[at] = call('GET', result_key(user, id)) end
return records

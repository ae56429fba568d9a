#!lua flags=no-writes
-- The result records of tasks of one user.
-- KEYS[1]  state
-- ARGV     user, ids ...
-- Returns  per id: the record, or nil
-- Cost     O(size of the records)
--@include base
local records = {}
for at = 2, #ARGV do records[at - 1] = call('GET', result_key(ARGV[1], ARGV[at])) end
return records

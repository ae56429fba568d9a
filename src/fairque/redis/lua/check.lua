#!lua flags=no-writes
-- Say what is wrong with parts of a queue, each seen at one moment.
-- KEYS[1]  state
-- Returns  per item, a list of {kind, key without its prefix, detail, ''}
-- Cost     O(items log n)
--@include checkup
--@arguments
return check_items(args, false)

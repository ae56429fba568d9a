#!lua flags=no-writes
-- Where a partition stands beside the others.
-- KEYS[1]  state
-- Returns  {the virtual time of whom a claim would serve next, '' where nobody is ready, that of the queue as it is known
--          here, the mean service, how many are ready, how many workers, how far the time of the partition itself has
--          gone, 1 where a move waits for somebody to go on with it, ms until places of limits are to be moved or -1,
--          the revision of what governs all users}
-- Cost     O(log users) per assignment
--@include base
--@include state
--@include fair
--@include between
--@include due_now
--@arguments
return sight_of(groups, new_stand(), not lines.lowest(root) and is_anybody_due())

#!lua flags=allow-oom
-- A scheduler stops: another one takes its part.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(1)
--@include base
--@include schedule_keepers
--@arguments
leave_part(scheduler)
return 1

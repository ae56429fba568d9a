#!lua
-- Change what all processes of a queue agree on. Those that run keep what they know until they start again.
-- KEYS[1]  state
-- ARGV     field and value of each setting that changes
-- Returns  1
-- Cost     O(settings)
--@include base
call('HSET', prefix .. 'settings', unpack(ARGV))
return 1

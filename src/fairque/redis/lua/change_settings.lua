#!lua
-- Change what all processes of a queue agree on. Those that run keep what they know until they start again.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(settings)
--@include base
--@arguments
for field, value in pairs(settings) do call('HSET', prefix .. 'settings', field, value) end
return 1

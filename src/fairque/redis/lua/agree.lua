#!lua flags=allow-oom
-- What all processes of a queue agree on: kept as the first one that opens it says, told to all others.
-- KEYS[1]  state
-- ARGV     number of the data layout, then field and value of each setting
-- Returns  fields and values as they are kept, the layout among them; nothing is written into another layout
-- Cost     O(settings)
--@include base
local key, layout = prefix .. 'settings', ARGV[1]
local kept = call('HGET', key, 'layout')
if not kept or kept == layout then
  for at = 2, #ARGV, 2 do call('HSETNX', key, ARGV[at], ARGV[at + 1]) end
  call('HSETNX', key, 'layout', layout)
end
return call('HGETALL', key)

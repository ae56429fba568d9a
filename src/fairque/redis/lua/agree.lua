#!lua flags=allow-oom
-- What all processes of a queue agree on: kept as the first one that opens it says, told to all others.
-- KEYS[1]  state
-- Returns  fields and values as they are kept, the layout among them; nothing is written into another layout
-- Cost     O(settings)
--@include base
--@arguments
local key = prefix .. 'settings'
local kept = call('HGET', key, 'layout')
if not kept or tonumber(kept) == layout then
  for field, value in pairs(settings) do call('HSETNX', key, field, value) end
  call('HSETNX', key, 'layout', layout)
  if not kept then call('HSETNX', state_key, 'arrival', 0) end -- one that is missing later was lost
end
return call('HGETALL', key)

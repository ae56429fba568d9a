#!lua flags=allow-oom
-- What all processes of a queue agree on: kept as the first one that opens it says, told to all others. How many
-- partitions there are, and which one this is, is said when it is made or never.
-- KEYS[1]  state
-- Returns  fields and values as they are kept, the layout among them; nothing is written into another layout
-- Cost     O(settings)
--@include base
--@arguments
local key = prefix .. 'settings'
local kept = call('HGET', key, 'layout')
if not kept or tonumber(kept) == layout then
  for field, value in pairs(settings) do
    if not kept or (field ~= 'partitions' and field ~= 'partition') then call('HSETNX', key, field, value) end
  end
  call('HSETNX', key, 'layout', layout)
  local has_tasks = not settings.partitions or settings.partition
  if not kept and has_tasks then call('HSETNX', state_key, 'arrival', 0) end -- one that is missing later was lost
end
return call('HGETALL', key)

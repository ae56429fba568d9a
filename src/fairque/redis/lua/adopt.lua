#!lua
-- Take on moves of which nobody was heard for ten seconds. Who asks next is told of others.
-- KEYS[1]  state
-- Returns  per move {user, 'departing', record as `departing` has it} or {user, 'arriving', the partition that it comes from,
--          token}
-- Cost     O(most log n)
--@include base
--@include frozen
--@include moves
--@arguments
local found = {}
for _, user in ipairs(call('ZRANGEBYSCORE', moves_key, '-inf', now, 'LIMIT', 0, most)) do
  local record, marker = call('HGET', departing_key, user), call('HMGET', frozen_key(user), 'why', 'source', 'token')
  if record then
    found[#found + 1] = { user, 'departing', record, '' }
  elseif marker[1] == 'arrive' then
    found[#found + 1] = { user, 'arriving', marker[2], marker[3] }
  end
  if record or marker[1] == 'arrive' then note_mover(user) else end_move(user) end
end
return found

--@include base
--@include state

-- Where a look at the silent deliveries of a lane stopped half way.
local function forget_cursor(member)
  if call('HDEL', state_key, 'cursor:' .. member) == 1 then count('cursors', -1) end
end

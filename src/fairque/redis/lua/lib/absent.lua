-- Users of whom nothing is to be changed or served here: they stand still, or live in another partition.
--@include base
--@include frozen
--@include moved

local function refuse_absent(user)
  refuse_moved(user) -- first: where it arrives it stands still, and is not there yet
  refuse_frozen(user)
end

-- For what may be said of one that is exported or imported, and must not get lost on the way to another partition.
local function refuse_leaving(user)
  refuse_moved(user)
  if call('HGET', frozen_key(user), 'why') == 'move' then refuse_frozen(user) end
end

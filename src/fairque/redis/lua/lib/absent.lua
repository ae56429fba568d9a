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
  local known = call('HMGET', frozen_key(user), 'why', 'leaves_until')
  if known[1] == 'move' or tonumber(known[2] or 0) > now then refuse_frozen(user) end
end

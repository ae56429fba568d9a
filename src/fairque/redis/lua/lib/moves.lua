-- Users on their way from one partition to another, and whoever sees to it that they arrive.
-- moves         zset  user → ms from which on another may see to it: its mover was heard of 10 s before
-- departing     hash  user → '<partition> <epoch> <token>': it lives there from now on; what is here of it is erased
-- manifest:<u>  list  keys without their prefix, the first to be erased last: where it leaves what it has, where it arrives
--                     what has come so far
-- In the state: moves, 1 while there are some.
--@include base

local moves_key, departing_key = prefix .. 'moves', prefix .. 'departing'
local MOVER_MS = 10000
local function manifest_key(user) return prefix .. 'manifest:' .. user end

-- Its mover lives.
local function note_mover(user)
  call('ZADD', moves_key, now + MOVER_MS, user)
  call('HSET', state_key, 'moves', 1)
end

local function end_move(user)
  call('DEL', manifest_key(user))
  call('ZREM', moves_key, user)
  if call('EXISTS', moves_key) == 0 then call('HDEL', state_key, 'moves') end
end

-- It does not stand still here any more.
local function stand_no_more(user)
  call('DEL', prefix .. 'frozen:' .. user)
  call('ZREM', prefix .. 'damaged', user)
  call('HDEL', prefix .. 'damage', user)
  if call('EXISTS', prefix .. 'damaged') == 0 then call('HDEL', state_key, 'damaged') end
end

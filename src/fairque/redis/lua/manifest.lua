#!lua
-- Note which keys a user has that is to leave this partition. They are erased once it has left: depart.lua, erase.lua.
-- KEYS[1]  state
-- Returns  how many are noted, or -1 where it stands still no more, or by another's will
-- Cost     O(names)
--@include base
--@include frozen
--@include moves
--@arguments
if call('HGET', frozen_key(user), 'token') ~= token then return -1 end
local HOUR_MS = 3600000
local key = manifest_key(user)
if first == 0 then call('DEL', key) end
local there = call('LLEN', key)
if there == first and names[1] then
  there = call('RPUSH', key, unpack(names))
  call('PEXPIRE', key, HOUR_MS) -- it may come to nothing
end
return there

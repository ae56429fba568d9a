-- Whoever had something and gave no sign of life for a lease may be dead. Then each lane is looked at once; while all are
-- alive, nobody looks at what they have, but now and then.
-- `hunt` in the state: when the last lease ended of those found silent so far: lanes that were looked at before are looked
-- at again. Negative when all have been.
--@include base
--@include state

local QUIET_LEASES = 30 -- between two looks at a lane while all workers live
local hunt_from = tonumber(hunt_known or 0)

local function begin_hunt(at)
  if at <= math.abs(hunt_from) then return end
  hunt_from = at
  call('HSET', state_key, 'hunt', at)
end

local function end_hunt()
  hunt_from = -hunt_from
  call('HSET', state_key, 'hunt', hunt_from)
end

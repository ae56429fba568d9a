-- A claim that found nothing is left here, should work come: who brings that answers it (lib/resting.lua). For a while only,
-- so that of a worker that stands still it is worth nothing. It asks for one task, and looks at nothing else.
-- resting:<w>  string  a `Claim`: the call whose number it has was answered with nothing
--@include base

local RESTED_MS = 10000 -- twice the time between two looks of an idle worker
local function resting_key(worker) return prefix .. 'resting:' .. worker end

local function leave_at_rest(claim)
  --@fields Claim claim: worker
  local want, waits, steals, rested, lists, it = 1, false, false, false, {}, {}
  for field, value in pairs(claim) do it[field] = value end
  --@put Claim it: want waits steals rested lists
  call('SET', resting_key(worker), cmsgpack.pack(it), 'PX', RESTED_MS)
end

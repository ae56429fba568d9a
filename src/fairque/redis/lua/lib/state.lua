-- What the queue keeps of itself: read once, and written back by save_state().
--@include base

local of_queue, fields_of_queue = {}, call('HGETALL', state_key) -- few: to ask for those that may be there takes longer
for at = 1, #fields_of_queue, 2 do of_queue[fields_of_queue[at]] = fields_of_queue[at + 1] end
local arrival = tonumber(of_queue.arrival or 0)
local has_policies, has_assigned = of_queue.policies, of_queue.assigned
local clearing_known = of_queue.clearing or '' -- lib/suspects.lua
local has_announcements, has_limits, keeper_known = of_queue.announcements, of_queue.limits, of_queue.keeper or ''
local has_weights, sweep_asked, has_returned = of_queue.weighted, of_queue.sweep, of_queue.returning
local has_byte_limits, is_weighing = tonumber(of_queue.byte_limits or 0) > 0, of_queue.weighing
local has_in_hand = tonumber(of_queue.in_hand or 0) -- lib/limits.lua
local has_damaged = of_queue.damaged -- lib/damage.lua
local hunt_known, silent_at_known = of_queue.hunt, of_queue.silent_at -- lib/hunt.lua, lib/silence.lua
local has_expiring = of_queue.expiring -- lib/expiry.lua
local root = { clock = tonumber(of_queue.clock or 0), mean = tonumber(of_queue.mean or 0) } -- the first line: lib/lines.lua
root.elsewhere = tonumber(of_queue.elsewhere) -- of a partition: the time of the queue, see lib/between.lua
local has_moved = of_queue.moved -- lib/moved.lua
local revision_known = tonumber(of_queue.revision or 0) -- lib/revision.lua
local forfeited_at = tonumber(of_queue.forfeited_at or 0) -- the revision at which places of a partition were: lib/loans.lua
local saved_clock, saved_arrival, saved_mean = root.clock, arrival, root.mean

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
local function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- Totals of the queue. One that is no number begins anew.
local counts = {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end

--@once
local save_tallies -- a function in scripts that measure users: lib/metrics.lua
--@once
local tell_of_moments -- a function in scripts that set moments: lib/moments.lua
local save_bytes = nil -- a function in scripts that count bytes: lib/bytes.lua
--@once
local leaves_limits_alone -- in scripts that have functions of limits and do not use them: lib/resting.lua
--@once
local save_lines -- a function in scripts that know lines: lib/lines.lua

-- A line that is of another type fails the call, but costs it no total. One that cannot be counted up is set.
local function save_state()
  if save_tallies then save_tallies() end
  if save_bytes then save_bytes() end
  local is_done, failure = true, nil
  if save_lines then is_done, failure = pcall(save_lines) end
  local put = {}
  local function set(field, value) put[#put + 1], put[#put + 2] = field, value end
  for field, by in pairs(counts) do
    if by ~= 0 then set(field, (tonumber(of_queue[field]) or 0) + by) end
  end
  if root.clock ~= saved_clock then set('clock', root.clock) end -- writing a fraction takes long
  if root.mean ~= saved_mean then set('mean', root.mean) end
  if arrival ~= saved_arrival then set('arrival', arrival) end
  local told = put[1] and redis.pcall('HSET', state_key, unpack(put))
  if type(told) == 'table' then -- a permission that is missing costs no total either
    for field, by in pairs(counts) do
      if by ~= 0 then call('HINCRBY', state_key, field, by) end
    end
    error(told, 0)
  end
  if tell_of_moments then tell_of_moments() end
  if not is_done then error(failure, 0) end
end

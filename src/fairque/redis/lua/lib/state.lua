-- What the queue keeps of itself: read once, and written back by save_state().
--@include base

local of_queue = call('HMGET', state_key, 'clock', 'arrival', 'policies', 'assigned', 'clearing', 'announcements',
  'limits', 'mean', 'keeper', 'weighted', 'sweep', 'returning', 'byte_limits', 'weighing', 'in_hand',
  'damaged', 'hunt', 'silent_at', 'expiring', 'elsewhere', 'moved', 'revision',
  'forfeited_at')
local arrival = tonumber(of_queue[2] or 0)
local has_policies, has_assigned = of_queue[3], of_queue[4]
local clearing_known = of_queue[5] or '' -- lib/suspects.lua
local has_announcements, has_limits, keeper_known = of_queue[6], of_queue[7], of_queue[9] or ''
local has_weights, sweep_asked, has_returned = of_queue[10], of_queue[11], of_queue[12]
local has_byte_limits, is_weighing = tonumber(of_queue[13] or 0) > 0, of_queue[14]
local has_in_hand = tonumber(of_queue[15] or 0) -- lib/limits.lua
local has_damaged = of_queue[16] -- lib/damage.lua
local hunt_known, silent_at_known = of_queue[17], of_queue[18] -- lib/hunt.lua, lib/silence.lua
local has_expiring = of_queue[19] -- lib/expiry.lua
local root = { clock = tonumber(of_queue[1] or 0), mean = tonumber(of_queue[8] or 0) } -- the first line: lib/lines.lua
root.elsewhere = tonumber(of_queue[20] or nil) -- of a partition: the time of the queue, see lib/between.lua
local has_moved = of_queue[21] -- lib/moved.lua
local revision_known = tonumber(of_queue[22] or 0) -- lib/revision.lua
local forfeited_at = tonumber(of_queue[23] or 0) -- the revision at which places of a partition were: lib/loans.lua
local saved_clock, saved_arrival, saved_mean = root.clock, arrival, root.mean

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
local function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- Totals of the queue.
local counts = {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end

--@once
local save_tallies -- a function in scripts that measure users: lib/metrics.lua
--@once
local tell_of_moments -- a function in scripts that set moments: lib/moments.lua
local save_bytes = nil -- a function in scripts that count bytes: lib/bytes.lua
--@once
local save_lines -- a function in scripts that know lines: lib/lines.lua

-- A line that is of another type fails the call, but costs it no total. One that cannot be counted up is set.
local function save_state()
  if save_tallies then save_tallies() end
  if save_bytes then save_bytes() end
  local is_done, failure = true, nil
  if save_lines then is_done, failure = pcall(save_lines) end
  for field, by in pairs(counts) do
    if by ~= 0 and type(redis.pcall('HINCRBY', state_key, field, by)) == 'table' then
      call('HSET', state_key, field, (tonumber(call('HGET', state_key, field)) or 0) + by)
    end
  end
  if root.clock ~= saved_clock or root.mean ~= saved_mean then
    call('HSET', state_key, 'clock', root.clock, 'arrival', arrival, 'mean', root.mean)
  elseif arrival ~= saved_arrival then -- of most that is put in; writing a fraction takes long
    call('HSET', state_key, 'arrival', arrival)
  end
  if tell_of_moments then tell_of_moments() end
  if not is_done then error(failure, 0) end
end

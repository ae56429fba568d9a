-- Reservations: who has less running than its `min_running` is served before all others.
-- reserved  zset  users that are ready and below their min_running → tag
--@include base
--@include state
--@include lines
--@include gates

local reserved = new_line({}, prefix .. 'reserved', '')
lines[reserved.key] = reserved

-- One slot of all workers is never reserved. Where they have not told how many there are, nothing is known of it.
local most_reserved
local function reservation_of(u)
  local least = u.policy.min_running
  if not least then return nil end
  if not most_reserved then
    local slots = tonumber(call('HGET', state_key, 'slots') or 0)
    most_reserved = slots > 0 and slots - 1 or NEVER
  end
  return math.min(least, most_reserved)
end

-- Puts the user where it belongs, also one whose reservation came from a default that has been taken back.
local function reserve(u)
  local least, tag = reservation_of(u), is_ready(u)
  if tag and least and tasks_running(u) < least then
    tag_in(reserved, u.name)
    set_tag(reserved, u.name, tag)
  elseif lowest(reserved) and tag_in(reserved, u.name) then
    take_out(reserved, u.name)
  end
end

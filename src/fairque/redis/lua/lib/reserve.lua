-- Reservations: who has less running than its `min_running` is served before all others.
-- reserved  zset  users that are ready and below their min_running → tag

function reservations.begin()
  reservations.line = lines.new({}, 'reserved', prefix .. 'reserved', '')
  lines.by_path[reservations.line.key] = reservations.line
end

-- One slot of all workers is never reserved. Where they have not told how many there are, nothing is known of it.
local most_reserved
function reservations.of(u)
  local least = u.policy.min_running
  if not least then return nil end
  if not most_reserved then
    most_reserved = gates.slots() > 0 and gates.slots() - 1 or gates.NEVER
  end
  return math.min(least, most_reserved)
end

-- Puts the user where it belongs, also one whose reservation came from a default that has been taken back.
function reservations.update(u)
  local least, tag = reservations.of(u), nodes.is_ready(u)
  if tag and least and gates.running(u) < least then
    lines.tag(reservations.line, u.name)
    lines.set(reservations.line, u.name, tag)
  elseif lines.lowest(reservations.line) and lines.tag(reservations.line, u.name) then
    lines.remove(reservations.line, u.name)
  end
end

-- Gates: when a user may be served.
-- parked  zset  users with a backlog that are held back → ms at which they may go on by themselves, inf where that takes
--               an event; '*' → the end of the pause of everybody

--@once
gates.NEVER = 1 / 0 -- until an event opens the gate: a task ends, the policy changes

function gates.running(u)
  u.running = u.running or call('XLEN', stream_key('critical', u.name)) + call('XLEN', stream_key('normal', u.name))
  return u.running
end

-- The slots of all live workers, 0 until one has told.
local slots
function gates.slots()
  slots = slots or tonumber(call('HGET', state_key, 'slots') or 0)
  return slots
end

-- Most tasks that may run at once. Second: whether that changes as workers come and go.
local function most_running(p)
  local most = p.max_running or gates.NEVER
  if not p.max_share then return most, false end
  local share = math.max(1, math.floor(p.max_share * gates.slots() + 1e-9))
  return math.min(most, share), share < most
end

-- Nil is now, else ms, or gates.NEVER.
function gates.at(u)
  local p, most, by_share = u.policy, nil, false
  u.is_by_share = false
  if is_absent(u.name) then return gates.NEVER end
  local paused = rawget(p, 'paused')
  if paused == true then return gates.NEVER end
  if paused and paused > now then return paused end
  if p.max_running or p.max_share then most, by_share = most_running(p) end
  if p.breaker_failures and nodes.marks(u).open_until > 0 then
    if u.open_until > now then return u.open_until end
    most = 1 -- half open: one task at a time shows whether it works again
  end
  if most and gates.running(u) >= most then
    u.is_by_share = by_share
    return gates.NEVER
  end
  if p.rate_us then
    local at = rate_opens_at(nodes.marks(u).tat, p.rate_us, p.rate_burst)
    if at > now_us then return math.ceil(at / 1000) end
  end
  return nil
end

-- A task of the user was delivered.
function gates.note_start(u)
  if u.running then u.running = u.running + 1 end
  local rate = u.policy.rate_us
  if not rate then return end
  u.tat = rate_after_start(nodes.marks(u).tat, rate)
  nodes.remember(u, 'tat', u.tat, 'tat_of', rate)
end

function gates.park(u, at)
  local p = u.policy
  -- Only a change of its own policy lets it go on, or the end of one of its tasks: the defaults do not matter.
  local is_own = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
  if at == gates.NEVER and is_own and not u.is_by_share then return end
  if u.is_by_share then call('HSET', state_key, 'held_by_share', 1) end
  call('ZADD', prefix .. 'parked', at, u.name)
  note_moment(at, u.name)
end

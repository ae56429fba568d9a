-- Gates: when a user may be served.
-- parked  zset  users with a backlog that are held back → ms at which they may go on by themselves, inf where that takes
--               an event; '*' → the end of the pause of everybody

gates.NEVER = math.huge -- until an event opens the gate: a task ends, the policy changes

function gates.running(u)
  u.running = u.running or call('XLEN', stream_key('critical', u.name)) + call('XLEN', stream_key('normal', u.name))
  return u.running
end

-- Nil is now, else ms, or gates.NEVER.
function gates.at(u)
  local p, most = u.policy, u.policy.max_running
  local paused = rawget(p, 'paused')
  if paused == true then return gates.NEVER end
  if paused and paused > now then return paused end
  if p.breaker_failures and nodes.marks(u).open_until > 0 then
    if u.open_until > now then return u.open_until end
    most = 1 -- half open: one task at a time shows whether it works again
  end
  if most and gates.running(u) >= most then return gates.NEVER end
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
  if at == gates.NEVER and is_own then return end
  call('ZADD', prefix .. 'parked', at, u.name)
  note_moment(at, u.name)
end

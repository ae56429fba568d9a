-- Gates: when a user may be served.
-- parked  zset  users with a backlog that are held back → ms at which they may go on by themselves, inf where that takes
--               an event; '*' → the end of the pause of everybody
--@include base
--@include state
--@include nodes
--@include gcra
--@include moments

local NEVER = math.huge -- until an event opens the gate: a task ends, the policy changes

local function tasks_running(u)
  u.running = u.running or call('XLEN', stream_key('critical', u.name)) + call('XLEN', stream_key('normal', u.name))
  return u.running
end

-- Nil is now, else ms, or NEVER.
local function gate_at(u)
  local p, most = u.policy, u.policy.max_running
  local paused = rawget(p, 'paused')
  if paused == true then return NEVER end
  if paused and paused > now then return paused end
  if p.breaker_failures and marks_of(u).open_until > 0 then
    if u.open_until > now then return u.open_until end
    most = 1 -- half open: one task at a time shows whether it works again
  end
  if most and tasks_running(u) >= most then return NEVER end
  if p.rate_us then
    local at = rate_opens_at(marks_of(u).tat, p.rate_us, p.rate_burst)
    if at > now_us then return math.ceil(at / 1000) end
  end
  return nil
end

-- A task of the user was delivered.
local function note_start(u)
  if u.running then u.running = u.running + 1 end
  local rate = u.policy.rate_us
  if not rate then return end
  u.tat = rate_after_start(marks_of(u).tat, rate)
  remember(u, 'tat', u.tat, 'tat_of', rate)
end

local function park(u, at)
  local p = u.policy
  -- Only a change of its own policy lets it go on, or the end of one of its tasks: the defaults do not matter.
  local is_own = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
  if at == NEVER and is_own then return end
  call('ZADD', prefix .. 'parked', at, u.name)
  note_moment(at, u.name)
end

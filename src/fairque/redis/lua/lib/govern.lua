-- What policies decide: who is in line, and who is held back.
--@once
governing.user, governing.gate, governing.note_end = nodes.user, gates.at, gates.note_end -- for others
local parked_key = prefix .. 'parked'

function governing.begin()
  reservations.begin()
  governing.read_policies()
end

-- The pause of everybody is a flag that claims read: nobody leaves `ready` for it. True, or until when.
function governing.read_policies()
  nodes.read_policies()
  governing.all_paused = (nodes.everybody.paused == true or (nodes.everybody.paused or 0) > now) and nodes.everybody.paused
end

-- Its backlog is gone, or may not be served: `is_capped`, because as much of it runs as may.
function governing.leave(u, is_capped)
  nodes.leave(u, is_capped)
  reservations.update(u)
end

function governing.hold_back(u, at)
  choice.leave(u, at == gates.NEVER and rawget(u.policy, 'paused') ~= true)
  gates.park(u, at)
  if on_held_back then on_held_back(u.name) end
end

function governing.admit(user, cost)
  local u = nodes.user(user)
  if nodes.is_ready(u) then return not choice.all_paused end
  local at = gates.at(u)
  if not at then
    nodes.join(u, cost)
    reservations.update(u)
    return not choice.all_paused
  end
  gates.park(u, at)
  call('ZADD', users_key, now, user)
  return false
end

local function head_cost(user)
  local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
  return id and cost_of_task(user, id)
end

-- Reads what a review needs, before anything is written.
function governing.know_places(user)
  choice.know(user)
  head_cost(user)
  gates.running(nodes.user(user))
end

-- Puts the user where it belongs after something changed. True: it may be served now, and could not before.
function governing.review(user)
  nodes.known[user] = nil -- what happened in this script is read anew
  if on_reviewed then on_reviewed(user) end
  call('ZREM', parked_key, user)
  local u = nodes.user(user)
  local cost, tag = head_cost(user), nodes.is_ready(u)
  local at = cost and gates.at(u)
  if tag and at then choice.hold_back(u, at) end
  if tag and not cost then choice.leave(u) end
  if not cost then nodes.forget_cap(u) end
  if tag and cost and not at then reservations.update(u) end
  if tag or not cost then return false end
  return choice.admit(user, cost)
end

-- What fails for one user is noted: it is looked at again later, and no longer for this.
local function alone(act, user)
  local is_done, may_run = pcall(act, user)
  if is_done then return may_run end
  damage().note(user, may_run)
  call('ZREM', parked_key, user)
end
function governing.review_alone(user) return alone(choice.review, user) end

-- Those whose time has come.
function governing.unpark(most, woken)
  for _, user in ipairs(call('ZRANGEBYSCORE', parked_key, '-inf', now, 'LIMIT', 0, most)) do
    if user == '*' then
      call('ZREM', parked_key, user)
      tell_all_workers()
    elseif choice.review_alone(user) then
      woken[user] = (woken[user] or 0) + 1
    end
  end
end

-- A task of the user ended. One that is ready stays so, unless its breaker opened. Returns as `review` does.
local function look_at_freed(user)
  local u = nodes.user(user)
  if u.opened or not nodes.is_ready(u) then return choice.review(user) end
  reservations.update(u)
  return false
end
function governing.freed(user) return alone(look_at_freed, user) end

function governing.retire(u)
  call('ZREM', parked_key, u.name)
  plain.retire(u)
end

-- What became known while it ran is charged, or given back, afterwards.
function governing.adjust(u, by)
  nodes.charge_late(u, by)
  reservations.update(u)
end

-- Whoever served it out of turn does so no longer.
function governing.forgive(u)
  nodes.forgive(u)
  reservations.update(u)
end

function governing.ends_matter(u)
  local p = u.policy
  return p.max_running or p.max_share or p.min_running or p.breaker_failures
end

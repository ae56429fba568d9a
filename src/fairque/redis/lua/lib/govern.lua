-- What policies decide: who is in line, and who is held back. `governed` is nil in a queue that has none.
--@include base
--@include state
--@include message
--@include nodes
--@include gates
--@include reserve
--@include breaker
--@include quota

-- Called with a user: functions in scripts that know limits of names (lib/limits.lua).
local on_held_back, on_reviewed = nil, nil

local function new_government()
  local it = { user = user_of, gate = gate_at, note_start = note_start, note_end = note_end }
  read_policies()
  local parked_key = prefix .. 'parked'

  -- The pause of everybody is a flag that claims read: nobody leaves `ready` for it. True, or until when.
  it.all_paused = (everybody.paused == true or (everybody.paused or 0) > now) and everybody.paused

  function it.leave(u, is_capped)
    leave(u, is_capped)
    reserve(u)
  end

  function it.hold_back(u, at)
    it.leave(u, at == NEVER and rawget(u.policy, 'paused') ~= true)
    park(u, at)
    if on_held_back then on_held_back(u.name) end
  end

  function it.admit(user, cost)
    local u = user_of(user)
    if is_ready(u) then return not it.all_paused end
    local at = gate_at(u)
    if not at then
      join(u, cost)
      reserve(u)
      return not it.all_paused
    end
    park(u, at)
    call('ZADD', users_key, now, user)
    return false
  end

  local function head_cost(user)
    local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
    return id and cost_of_task(user, id)
  end

  -- Puts the user where it belongs after something changed. True: it may be served now, and could not before.
  function it.review(user)
    known_users[user] = nil -- what happened in this script is read anew
    if on_reviewed then on_reviewed(user) end
    call('ZREM', parked_key, user)
    local u = user_of(user)
    local cost, tag = head_cost(user), is_ready(u)
    local at = cost and gate_at(u)
    if tag and at then it.hold_back(u, at) end
    if tag and not cost then it.leave(u) end
    if not cost then forget_cap(u) end
    if tag and cost and not at then reserve(u) end
    if tag or not cost then return false end
    return it.admit(user, cost)
  end

  -- Those whose time has come.
  function it.unpark(most, woken)
    for _, user in ipairs(call('ZRANGEBYSCORE', parked_key, '-inf', now, 'LIMIT', 0, most)) do
      if user == '*' then
        call('ZREM', parked_key, user)
        tell_all_workers()
      elseif it.review(user) then
        woken[user] = (woken[user] or 0) + 1
      end
    end
  end

  -- A task of the user ended. One that is ready stays so, unless its breaker opened. Returns as `review` does.
  function it.freed(user)
    local u = user_of(user)
    if u.opened or not is_ready(u) then return it.review(user) end
    reserve(u)
    return false
  end

  function it.unpark_one(user) call('ZREM', parked_key, user) end

  -- What became known while it ran is charged, or given back, afterwards.
  function it.adjust(u, by)
    charge_late(u, by)
    reserve(u)
  end

  -- Whoever served it out of turn does so no longer.
  function it.forgive(u)
    forgive(u)
    reserve(u)
  end

  function it.ends_matter(u)
    local p = u.policy
    return p.max_running or p.min_running or p.breaker_failures
  end

  local quota
  local function of_quota(name)
    it[name] = function(...)
      quota = quota or new_quota()
      return quota[name](...)
    end
  end
  for _, name in ipairs({ 'waiting', 'may_drop', 'excess', 'retry_after' }) do of_quota(name) end

  return it
end
local governed = has_policies and new_government() or nil

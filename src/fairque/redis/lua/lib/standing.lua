-- Where a task stands, and for which dead letters it waits in the end.
--@include base

local OF_LETTERS = { F = 'finished', X = 'failed', C = 'canceled' }

-- Its state, or '' when nothing is known of it.
local function standing_of(user, id)
  local ended = OF_LETTERS[call('GETRANGE', result_key(user, id), 9, 9)]
  if ended then return ended end
  if call('EXISTS', body_key(user, id)) == 0 then return '' end
  return call('HGET', task_key(user, id), 'state') or 'queued'
end

-- Looks through what tasks of one user wait for: at 5,000 pairs of a task and one that it waits for, at most.
local function new_outlook(user)
  local it, verdicts, left = { blockers = {} }, {}, 5000
  local MOST_BLOCKERS, MOST_NEEDS = 5, 1000

  local function note_blocker(id)
    if #it.blockers < MOST_BLOCKERS then it.blockers[#it.blockers + 1] = id end
  end

  -- Whether it cannot end before somebody requeues, or gives up, a dead letter; `it.blockers` are some of these.
  function it.is_blocked(id)
    if verdicts[id] ~= nil then return verdicts[id] end
    verdicts[id] = false
    local known = call('HMGET', task_key(user, id), 'state', 'on_failure')
    if known[1] ~= 'deferred' then return false end
    local waits_on = known[2] == 'wait' or known[2] == 'wait-on'
    for _, need in ipairs(call('SRANDMEMBER', needs_key(user, id), MOST_NEEDS)) do
      left = left - 1
      if left < 0 then break end
      if waits_on and standing_of(user, need) == 'failed' then
        if verdicts[need] == nil then note_blocker(need) end
        verdicts[need], verdicts[id] = false, true
      elseif it.is_blocked(need) then
        verdicts[id] = true
      end
    end
    return verdicts[id]
  end

  return it
end

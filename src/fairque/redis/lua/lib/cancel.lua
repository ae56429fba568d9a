-- Take a task out of wherever it waits, or tell the worker that runs it.
--@include base
--@include state
--@include metrics
--@include fair
--@include limits
--@include canceled
--@include first_moment

-- Out of the place that its state says.
local function withdraw(user, id, state)
  local remove = {}

  function remove.queued()
    local key = task_key(user, id)
    local held = call('HGET', key, 'held')
    if held then count(call('HGET', key, 'lane'), -1) end
    if held or limited then limiting().drop(user, id, held) end
    for _, lane in ipairs({ 'critical', 'normal' }) do count(lane, -call('ZREM', place_key(lane, user), id)) end
    retire(user)
  end

  function remove.scheduled()
    count('scheduled', -take_moment(due_key, place_key('scheduled', user), user, id))
  end

  function remove.deferred() depend().leave_deferred(user, id) end

  remove[state]()
end

-- The outcome is passed on at the end of the script. Returns 'done' | 'canceling' (its worker was told) | 'ended' (before) |
-- nil when it is not known.
function cancel_task(user, id, reason, ttl)
  if call('EXISTS', result_key(user, id)) == 1 then return 'ended' end
  if call('EXISTS', body_key(user, id)) == 0 then return nil end
  local key = task_key(user, id)
  local state = call('HGET', key, 'state') or 'queued'
  if state == 'failed' then return 'ended' end
  if state == 'started' then
    call('HSETNX', key, 'canceling', reason)
    call('PUBLISH', prefix .. 'wake:' .. call('HGET', key, 'worker'), user .. ' ' .. id)
    return 'canceling'
  end
  withdraw(user, id, state)
  end_canceled(user, id, reason, ttl)
  return 'done'
end

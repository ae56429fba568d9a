-- A task leaves the place in which it waits. Named by lib/depend.lua, behind its functions.
--@include base
--@include state
--@include fair
--@include limits
--@include first_moment

-- `state`: queued, scheduled or deferred.
local function take_out(user, id, state)
  local remove = {}

  function remove.queued()
    local held = call('HGET', task_key(user, id), 'held')
    if held then count(call('HGET', task_key(user, id), 'lane'), -1) end
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

-- A task leaves the place in which it waits.
--@include base
--@include state
--@include fair
--@include limits
--@include depend

-- `state`: queued, scheduled or deferred.
local function take_out(user, id, state)
  local key, remove = task_key(user, id), {}

  function remove.queued()
    local held = call('HGET', key, 'held')
    if held then count(call('HGET', key, 'lane'), -1) end
    if held or limited then limiting().drop(user, id, held) end
    for _, lane in ipairs({ 'critical', 'normal' }) do count(lane, -call('ZREM', place_key(lane, user), id)) end
    retire(user)
  end

  function remove.scheduled()
    local waiting = place_key('scheduled', user)
    count('scheduled', -call('ZREM', waiting, id))
    local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
    if first then
      call('ZADD', due_key, 'GT', math.floor(first), user) -- one that had its turn stays behind the others
    else
      call('ZREM', due_key, user)
    end
  end

  function remove.deferred() depend().leave_deferred(user, id) end

  remove[state]()
end

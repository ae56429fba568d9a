-- Tasks that are to run together wait among the scheduled ones of their user, until so many of a name wait or the first has
-- waited for so long. Who is served first of a group takes the others along. What is canceled meanwhile, or moved, is
-- met no more: who is left alone runs alone.
-- collecting:<u>       hash  name → the group that is open: the id of its first task
-- collected:<u>:<id>   list  the ids of a group
-- task:<u>:<id>        collect  its group
--@include base
--@include state
--@include message
--@include place
--@include wake

local function new_collecting()
  local it = {}
  local KEPT_MS = 86400000 -- of a group after its last task came; then they run apart
  local function open_key(user) return prefix .. 'collecting:' .. user end
  local function group_key(user, group) return prefix .. 'collected:' .. user .. ':' .. group end

  -- It leaves the scheduled ones.
  function it.unschedule(user, id)
    local waiting = place_key('scheduled', user)
    local removed = call('ZREM', waiting, id)
    count('scheduled', -removed)
    local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
    if first then call('ZADD', due_key, 'GT', math.floor(first), user) else call('ZREM', due_key, user) end
    return removed == 1
  end

  -- One of a full group comes to its lane; it takes the others along when it is served.
  local function serve(user, group, step_us)
    for _, id in ipairs(call('LRANGE', group_key(user, group), 0, -1)) do
      if it.unschedule(user, id) then
        local priority = call('HGET', task_key(user, id), 'priority')
        local lane, score = score_of(tonumber(priority or 3), step_us)
        call('HSET', task_key(user, id), 'state', 'queued', 'queued', now)
        if place(user, id, lane, score) then wake(user, 1) end
        return
      end
    end
  end

  function it.add(user, id, group)
    local key = group_key(user, group)
    local waiting = call('RPUSH', key, id)
    call('PEXPIRE', key, KEPT_MS)
    return waiting
  end

  -- Whether a task that came at this ms should be in its group, and is not.
  function it.lacks(user, id, group, came) return came + KEPT_MS > now and not call('LPOS', group_key(user, group), id) end

  -- It is served by itself.
  function it.leave(user, id) call('HDEL', task_key(user, id), 'collect') end

  -- A task has come, and is scheduled. `when`: as `AddedTask` has it.
  function it.join(user, id, name, when, step_us)
    local size = tonumber(string.match(when, '^collect (%d+) '))
    local open = open_key(user)
    local group = call('HGET', open, name)
    if not group or call('EXISTS', group_key(user, group)) == 0 then
      group = id
      call('DEL', group_key(user, group))
      call('HSET', open, name, group)
    end
    local waiting = it.add(user, id, group)
    call('PEXPIRE', open, KEPT_MS)
    call('HSET', task_key(user, id), 'collect', group)
    if waiting < size then return end
    call('HDEL', open, name)
    serve(user, group, step_us)
  end

  -- One of a group is served: the others, as far as they wait for nothing else. Nobody joins it any more.
  function it.others(user, id, group, name)
    local found = {}
    for _, other in ipairs(call('LRANGE', group_key(user, group), 0, -1)) do
      local known = call('HMGET', task_key(user, other), 'collect', 'state', 'held')
      local waits = (known[2] == 'scheduled' or known[2] == 'queued') and not known[3]
      if other ~= id and known[1] == group and waits then found[#found + 1] = { other, known[2] } end
    end
    call('DEL', group_key(user, group))
    if call('HGET', open_key(user), name) == group then call('HDEL', open_key(user), name) end
    return found
  end

  -- Of a user that is purged.
  function it.forget(user)
    for _, group in ipairs(call('HVALS', open_key(user))) do call('DEL', group_key(user, group)) end
    call('DEL', open_key(user))
  end

  return it
end
local collecting_known
local function collecting()
  collecting_known = collecting_known or new_collecting()
  return collecting_known
end

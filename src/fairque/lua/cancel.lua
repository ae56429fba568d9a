#!lua flags=allow-oom
-- Cancel a task. What waits ends here; a running one ends when its worker has been told.
-- KEYS[1]  state
-- ARGV     user, id, reason, TTL of the record in ms, priority step in ms
-- Returns  'done' | 'canceling' (its worker was told) | 'ended' (before) | nil when it is not known
-- Cost     O(log backlog + dependencies + dependents)
--@include base
--@include fair
--@include wake
--@include place
--@include canceled
--@include depend
local user, id, reason, ttl, step_us = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]) * 1000
if call('EXISTS', result_key(user, id)) == 1 then return 'ended' end
if call('EXISTS', body_key(user, id)) == 0 then return nil end
local key = task_key(user, id)
local state = call('HGET', key, 'state') or 'queued'
if state == 'failed' then return 'ended' end

local remove = {}

function remove.queued()
  for _, lane in ipairs({ 'critical', 'normal' }) do count(lane, -call('ZREM', lane_key(lane, user), id)) end
  if call('EXISTS', lane_key('critical', user), lane_key('normal', user)) == 0 then
    local tag = call('ZSCORE', ready_key, user)
    if tag then leave(user, tag) end
  end
end

function remove.scheduled()
  local waiting = prefix .. 'scheduled:' .. user
  count('scheduled', -call('ZREM', waiting, id))
  local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  if first[2] then call('ZADD', due_key, first[2], user) else call('ZREM', due_key, user) end
end

function remove.deferred() leave_deferred(user, id) end

if state == 'started' then
  call('HSETNX', key, 'canceling', reason)
  call('PUBLISH', prefix .. 'wake:' .. call('HGET', key, 'worker'), user .. ' ' .. id)
  return 'canceling'
end
remove[state]()
end_canceled(user, id, reason, ttl)
pass_on_outcomes(step_us, ttl)
save_state()
return 'done'

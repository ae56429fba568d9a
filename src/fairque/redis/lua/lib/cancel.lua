-- Take a task out of wherever it waits, or tell the worker that runs it.
--@include base
--@include state
--@include metrics
--@include fair
--@include limits
--@include canceled
--@include take_out

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
    call('SPUBLISH', prefix .. 'wake:' .. call('HGET', key, 'worker'), user .. ' ' .. id)
    return 'canceling'
  end
  take_out(user, id, state)
  end_canceled(user, id, reason, ttl)
  return 'done'
end

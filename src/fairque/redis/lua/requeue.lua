#!lua
-- Bring dead letters back: attempts start anew, the history of errors stays.
-- KEYS[1]  state
-- Returns  per id: 1 requeued, 0 it is not a dead letter
-- Cost     O(ids log backlog)
--@include base
--@include state
--@include task
--@include fair
--@include wake
--@include place
--@include once
--@arguments
local before = answered(nonce)
if before then return before end
local requeued, answers = 0, {}

local function requeue(id)
  local key = task_key(user, id)
  local body = call('GETRANGE', body_key(user, id), 0, 17)
  if body == '' or call('HGET', key, 'state') ~= 'failed' then return 0 end
  local lane, score = score_of(string.byte(body, 18) or 3, priority_step_ms * 1000)
  call('DEL', result_key(user, id))
  unlist_dead(user, id)
  for _, kept in ipairs({ keys_of_task(user, id) }) do call('PERSIST', kept) end
  call('HDEL', key, 'attempt', 'failures', 'lost', 'returned', 'since', 'ended', 'canceling', 'charged', 'progress',
    'message')
  call('HSET', key, 'state', 'queued', 'queued', now)
  place(user, id, lane, score)
  publish(user, id, 'waiting')
  requeued = requeued + 1
  return 1
end

for at, id in ipairs(ids) do answers[at] = requeue(id) end
if requeued > 0 then wake(user, requeued) end
save_state()
return answer(nonce, answers)

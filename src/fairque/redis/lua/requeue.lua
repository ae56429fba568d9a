#!lua
-- Bring dead letters back: attempts start anew, the history of errors stays.
-- KEYS[1]  state
-- ARGV     nonce, user, priority step in ms, ids ...
-- Returns  per id: 1 requeued, 0 it is not a dead letter
-- Cost     O(ids log backlog)
--@include base
--@include fair
--@include wake
--@include place
--@include once
local before = answered(ARGV[1])
if before then return before end
local user, step_us = ARGV[2], tonumber(ARGV[3]) * 1000
local requeued, answers = 0, {}

local function requeue(id)
  local key = task_key(user, id)
  local body = call('GETRANGE', body_key(user, id), 0, 17)
  if body == '' or call('HGET', key, 'state') ~= 'failed' then return 0 end
  local lane, score = score_of(string.byte(body, 18) or 3, step_us)
  call('DEL', result_key(user, id))
  call('ZREM', prefix .. 'dead:' .. user, id)
  call('ZREM', prefix .. 'dead', user .. ':' .. id)
  for _, kept in ipairs({ key, body_key(user, id), errors_key(user, id) }) do call('PERSIST', kept) end
  call('HDEL', key, 'attempt', 'failures', 'lost', 'returned', 'since', 'ended', 'canceling', 'charged', 'progress',
    'message')
  call('HSET', key, 'state', 'queued', 'queued', now)
  place(user, id, lane, score)
  publish(user, id, 'waiting')
  requeued = requeued + 1
  return 1
end

for at = 4, #ARGV do answers[at - 3] = requeue(ARGV[at]) end
if requeued > 0 then wake(user, requeued) end
save_state()
return answer(ARGV[1], answers)

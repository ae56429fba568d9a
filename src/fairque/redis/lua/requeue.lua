#!lua
-- Bring dead letters back, all or nothing: attempts start anew, the history of errors stays.
-- KEYS[1]  state
-- Returns  per id: 1 requeued, 0 it is not a dead letter; or, when nothing was written: {'full', user, ms until there may
--          be room}
-- Cost     O(ids log backlog)
--@include base
--@include absent
--@include state
--@include alive
--@include task
--@include letter
--@include fair
--@include wake
--@include place
--@include once
--@include ends
--@arguments
local before = answered(nonce)
if before then return before end
refuse_absent(user)
local requeued, answers = 0, {}

-- The head of its body, or nil when it is no dead letter.
local function letter(id)
  local body = call('GETRANGE', body_key(user, id), 0, 17)
  return body ~= '' and call('HGET', task_key(user, id), 'state') == 'failed' and body or nil
end

-- Nothing is dropped for a task that failed.
local function over_quota()
  local more, seen = 0, {}
  for _, id in ipairs(ids) do
    if not seen[id] and letter(id) then more = more + 1 end
    seen[id] = true
  end
  local excess = more > 0 and governed.excess(user, more) or 0
  return excess > 0 and { 'full', user, governed.retry_after(user, excess) } or nil
end

local function requeue(id)
  local key, body = task_key(user, id), letter(id)
  if not body then return 0 end
  local lane, score = score_of(string.byte(body, 18) or 3, priority_step_ms * 1000)
  if bytes then bytes.lift(user, id) end
  call('DEL', result_key(user, id))
  unlist_dead(user, id)
  if bytes then bytes.change_ends(user, id, -1) end
  for _, kept in ipairs({ chunks_key(user, id), ends_key(user, id), children_key(user, id), keys_of_task(user, id) }) do
    call('PERSIST', kept)
  end
  if bytes then
    bytes.lay(user, id)
    bytes.change_ends(user, id, 1)
  end
  clear_its_name(key)
  call('HDEL', key, 'attempt', 'failures', 'returned', 'since', 'ended', 'canceling', 'charged',
    'charged_before', 'progress', 'message', 'progress_of', 'expires', 'snoozed', 'dead_kind', 'dead_apart', 'lane',
    'score')
  call('HSET', key, 'state', 'queued', 'queued', now, 'enqueued', now)
  place(user, id, lane, score)
  publish(user, id, 'waiting')
  endings().note_requeue(user, id)
  requeued = requeued + 1
  return 1
end

local refused = governed and over_quota()
if refused then return refused end
-- All is read before anything is written.
choice.know(user)
for _, where in ipairs({ 'critical', 'normal', 'dead', 'lapsing' }) do call('ZCARD', place_key(where, user)) end
for _, id in ipairs(ids) do
  if letter(id) then endings().prove(user, id) end
end
for at, id in ipairs(ids) do answers[at] = requeue(id) end
if requeued > 0 then wake(user, requeued) end
save_state()
return answer(nonce, answers)

#!lua flags=allow-oom
-- Give dead letters up: nothing is left of them.
-- KEYS[1]  state
-- Returns  per id: 1 discarded, 0 it is not a dead letter
-- Cost     O(ids + dependents)
--@include base
--@include absent
--@include state
--@include alive
--@include once
--@include task
--@include letter
--@include limits
--@include depend
--@arguments
local before = answered(nonce)
if before then return before end
refuse_absent(user)
local answers = {}
for _, where in ipairs({ 'dead', 'lapsing' }) do call('ZCARD', place_key(where, user)) end -- all is read before anything is written
local linked = {}
for at, id in ipairs(ids) do
  local known = call('HMGET', task_key(user, id), 'state', 'linked')
  answers[at], linked[at] = known[1] == 'failed' and 1 or 0, known[2]
end
for at, id in ipairs(ids) do
  unlist_dead(user, id)
  if answers[at] == 1 then
    erase_task(user, id)
    if linked[at] then announce(user, id, 'discarded', false) end
  end
end
pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
pass_room_on()
save_state()
return answer(nonce, answers)

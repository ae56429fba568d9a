#!lua flags=allow-oom
-- Cancel a task. What waits ends here; a running one ends when its worker has been told.
-- KEYS[1]  state
-- Returns  'done' | 'canceling' (its worker was told) | 'ended' (before) | nil when it is not known
-- Cost     O(log backlog + dependencies + dependents)
--@include base
--@include absent
--@include state
--@include alive
--@include once
--@include depend
--@arguments
local before = answered(nonce)
if before then return before end
refuse_absent(user)
local outcome = cancel_task(user, id, reason, dead_letter_ttl_ms)
if outcome == 'done' then
  pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
  pass_room_on()
  save_state()
  answer(nonce, outcome)
end
return outcome

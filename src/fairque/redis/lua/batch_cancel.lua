#!lua flags=allow-oom
-- Cancel a batch, some of its tasks in each call: they end, or their workers are told. Nothing is added to it from the first on.
-- KEYS[1]  state
-- Returns  {cursor of the next call, '0' when this was the last; how many were canceled; how many run and were told}, or nil
--          where the batch is not known
-- Cost     O(most log backlog + dependents)
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
local batches = endings().batches()
if not batches.state(user, batch) then return nil end
batches.prove(user, batch)
endings().prove_places(user)
local queued = batches.end_adding(user, batch, 'canceled', priority_step_ms * 1000)
local page = call('SSCAN', batches.tasks_key(user, batch), cursor, 'COUNT', most)
local canceled, told = 0, 0
for _, id in ipairs(page[2]) do
  local outcome = cancel_task(user, id, reason, dead_letter_ttl_ms)
  if outcome == 'done' then canceled = canceled + 1 end
  if outcome == 'canceling' then told = told + 1 end
end
pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
pass_room_on()
if queued > 0 then wake(user, queued) end
save_state()
return answer(nonce, { page[1], canceled, told })

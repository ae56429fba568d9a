#!lua flags=allow-oom
-- Nobody adds to a batch any more but its own tasks. With the last of them its callbacks are put in, or now.
-- KEYS[1]  state
-- Returns  1, or 0 where it is not known
-- Cost     O(log batches)
--@include base
--@include absent
--@include state
--@include alive
--@include wake
--@include ends
--@arguments
refuse_absent(user)
local batches = endings().batches()
if not batches.state(user, batch) then return 0 end
batches.prove(user, batch)
endings().prove_places(user)
local queued = batches.end_adding(user, batch, 'closed', priority_step_ms * 1000)
if queued > 0 then wake(user, queued) end
save_state()
return 1

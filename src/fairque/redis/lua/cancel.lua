#!lua flags=allow-oom
-- Cancel a task. What waits ends here; a running one ends when its worker has been told.
-- KEYS[1]  state
-- ARGV     user, id, reason, TTL of the record in ms, priority step in ms, nonce
-- Returns  'done' | 'canceling' (its worker was told) | 'ended' (before) | nil when it is not known
-- Cost     O(log backlog + dependencies + dependents)
--@include base
--@include fair
--@include wake
--@include place
--@include limits
--@include canceled
--@include depend
--@include once
--@include cancel
local user, id, reason, ttl, step_us = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]) * 1000
local before = answered(ARGV[6])
if before then return before end
local outcome = cancel_task(user, id, reason, ttl)
if outcome == 'done' then
  pass_on_outcomes(step_us, ttl)
  save_state()
  answer(ARGV[6], outcome)
end
return outcome

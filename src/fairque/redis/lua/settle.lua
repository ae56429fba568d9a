#!lua flags=allow-oom
-- Report how deliveries ended.
-- KEYS[1]  state
-- Returns  per outcome: 1 done (also by an earlier try of the same call), 0 or less refused: lib/whereabouts.lua has why, or
--          the text of an error: it is not taken. Behind them, errors of what follows from the outcomes
-- Cost     O(outcomes)
--@include alive
--@include settle
--@arguments
local answers = settle_outcomes(args)
save_state()
return answers

#!lua
-- Report how deliveries ended, and claim what comes next: a worker that reports usually has room for more.
-- KEYS[1]  state
-- Returns  {what settle.lua returns, what claim.lua returns or the text of its error}
-- Cost     of the two; one that only reports calls settle.lua, which a server without memory still runs
--@include alive
--@include settle
--@include claim
--@arguments
local answers = settle_outcomes(report, true)
local has_claimed, claimed = pcall(claim_tasks, claim)
save_state()
return { answers, has_claimed and claimed or text_of(claimed) }

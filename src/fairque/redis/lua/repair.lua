#!lua flags=allow-oom
-- The same, and mend what can be mended. Nothing that can still be run is lost.
-- KEYS[1]  state
-- Returns  per item, a list of {kind, key without its prefix, detail, what was done or ''}
-- Cost     O(items log n)
--@include checkup
--@include once
--@arguments
local before = answered(nonce)
if before then return before end
local answers = check_items(args, true)
save_state()
return answer(nonce, answers)

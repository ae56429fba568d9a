#!lua
-- Open a batch, to which tasks are added from then on.
-- KEYS[1]  state
-- Returns  'new' (also by an earlier try of the same call) | 'joined' (it is open already) | 'over' (it takes no more) |
--          {'heavy', user, bytes used, limit, bytes asked for, ms}: nothing was written
-- Cost     O(log batches)
--@include base
--@include absent
--@include state
--@include alive
--@include ends
--@arguments
refuse_absent(user)
local on_complete = calls_complete[1] and endings().pack(calls_complete)
local on_success = calls_success[1] and endings().pack(calls_success)
if bytes and not endings().batches().state(user, batch) then
  local too_heavy = bytes.refuse(user, #(on_complete or '') + #(on_success or ''))
  if too_heavy then return too_heavy end
end
local opened = endings().batches().open(user, batch, nonce, ttl_ms, keep_ms, dead_letter_ttl_ms, on_complete, on_success)
save_state()
return opened

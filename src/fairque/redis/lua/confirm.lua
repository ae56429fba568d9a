#!lua flags=allow-oom
-- What was put in with a receipt is gone where it came from. Its receipt stays for as long as a call may be under way that
-- began before that.
-- KEYS[1]  state
-- Returns  ms since the epoch, by which the next calls are told when they began
-- Cost     O(nonces)
--@include base
--@arguments
for _, nonce in ipairs(nonces) do call('PEXPIRE', prefix .. 'answer:' .. nonce, keep_ms) end
return now

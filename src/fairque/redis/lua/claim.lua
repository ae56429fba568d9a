#!lua
-- Promote what is due, steal from silent workers, then serve fairly.
-- KEYS[1]  state
-- Returns  {when what it hands out begins: now, or where that is told again, then; ms for which the worker may sleep, -1
--          for ever, -2: the lists of its assignments are to be sent, or -3: what governs all users was changed elsewhere, then per delivery: user, id, lane, stream id, attempt, score, history, body}. history: '' at the first delivery, else 'failures lost returned returned-since queued canceling'
--          body: '' where there is one too many: it is to be put back
-- Cost     O(wanted log users), plus O(1) per promoted and stolen task, both bounded
--@include alive
--@include claim
--@arguments
local is_done, reply = pcall(claim_tasks, args)
save_state()
if not is_done then error(reply, 0) end
return reply

#!lua flags=allow-oom
-- Give dead letters up: nothing is left of them.
-- KEYS[1]  state
-- Returns  per id: 1 discarded, 0 it is not a dead letter
-- Cost     O(ids)
--@include base
--@include once
--@include task
--@arguments
local before = answered(nonce)
if before then return before end
local answers = {}
call('ZCARD', place_key('dead', user)) -- all is read before anything is written
for at, id in ipairs(ids) do answers[at] = call('HGET', task_key(user, id), 'state') == 'failed' and 1 or 0 end
for at, id in ipairs(ids) do
  if answers[at] == 1 then erase_task(user, id) end
  unlist_dead(user, id)
end
if save_bytes then save_bytes() end
return answer(nonce, answers)

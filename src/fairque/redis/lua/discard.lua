#!lua flags=allow-oom
-- Give dead letters up: nothing is left of them.
-- KEYS[1]  state
-- ARGV     nonce, user, ids ...
-- Returns  per id: 1 discarded, 0 it is not a dead letter
-- Cost     O(ids)
--@include base
--@include once
local before = answered(ARGV[1])
if before then return before end
local user, answers = ARGV[2], {}
for at = 3, #ARGV do
  local id = ARGV[at]
  local key = task_key(user, id)
  local is_dead = call('HGET', key, 'state') == 'failed'
  if is_dead then
    local feeds = call('HGET', key, 'feeds')
    call('DEL', key, body_key(user, id), errors_key(user, id), result_key(user, id))
    if feeds then call('HSET', key, 'feeds', 1) end -- those that wait, wait for the next task of this id
  end
  call('ZREM', prefix .. 'dead:' .. user, id)
  call('ZREM', prefix .. 'dead', user .. ':' .. id)
  answers[at - 2] = is_dead and 1 or 0
end
return answer(ARGV[1], answers)

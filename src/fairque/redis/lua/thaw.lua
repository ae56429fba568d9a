#!lua flags=allow-oom
-- Have a user go on that stands still.
-- KEYS[1]  state
-- Returns  1, or 0 where it does not stand still, or by another's will
-- Cost     O(log users)
--@include base
--@include state
--@include alive
--@include fair
--@include limits
--@include frozen
--@include weighing
--@include once
--@arguments
local key = frozen_key(user)
local known = call('HMGET', key, 'token', 'why')
if known[1] ~= token then return answered(token) or 0 end
call('DEL', key)
if known[2] == 'import' and ahead >= 0 then -- it is complete
  local u = nodes.user(user)
  nodes.reweight(u)
  if ahead > 0 then lines.keep(u.up, u.member, u.up.clock + math.min(ahead, lines.HORIZON * u.up.mean)) end
  new_weighing().recount(user)
end
call('ZREM', prefix .. 'parked', user) -- its policy may have been cleared meanwhile
local woken = {}
damage().attempt(user, damage().come_back, user, woken)
if call('EXISTS', prefix .. 'damaged') == 0 then call('HDEL', state_key, 'damaged') end
for name, tasks in pairs(woken) do wake(name, tasks) end
pass_room_on()
save_state()
return answer(token, 1)

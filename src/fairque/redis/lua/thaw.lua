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
--@include moved
--@include moves
--@include frozen
--@include passport
--@include weighing
--@include schedule_keepers
--@include once
--@arguments
local key = frozen_key(user)
local known = call('HMGET', key, 'token', 'why')
if known[1] ~= token then return answered(token) or 0 end
local marker = call('HGETALL', key)

-- All of it is here.
local function arrive()
  for at = 1, #marker, 2 do
    local total = string.match(marker[at], '^n:(.*)$')
    if total then count(total, tonumber(marker[at + 1])) end
    if marker[at] == 'passport' then present_passport(user, marker[at + 1]) end
  end
  unmark_moved(user)
  end_move(user)
end

-- Its workers have not heard yet where their deliveries are: leases begin anew.
local PENDING, AT_ONCE = 100000, 1000
local function begin_leases(lane)
  local stream, member = stream_key(lane, user), lane .. ':' .. user
  if call('EXISTS', stream) == 0 then return end
  local ids_of = {}
  for _, entry in ipairs(call('XPENDING', stream, 'workers', '-', '+', PENDING)) do
    local ids = ids_of[entry[2]] or {}
    ids[#ids + 1], ids_of[entry[2]] = entry[1], ids
  end
  for worker, ids in pairs(ids_of) do
    for at = 1, #ids, AT_ONCE do
      local some = { unpack(ids, at, math.min(at + AT_ONCE - 1, #ids)) }
      some[#some + 1] = 'JUSTID'
      call('XCLAIM', stream, 'workers', worker, '0', unpack(some))
    end
  end
  local look = now + tonumber(call('HGET', prefix .. 'settings', 'lease_ms') or 0)
  call('ZADD', leases_key, look, member)
  if has_assigned then assignments.note_lease(member, user, look) end
end

call('DEL', key)
if known[2] == 'arrive' then
  arrive()
  for _, lane in ipairs({ 'critical', 'normal' }) do begin_leases(lane) end
elseif known[2] == 'import' and ahead >= 0 then -- it is complete
  local u = nodes.user(user)
  nodes.reweight(u)
  if ahead > 0 then lines.keep(u.up, u.member, u.up.clock + math.min(ahead, lines.HORIZON * u.up.mean)) end
  new_weighing().recount(user)
end
call('ZREM', prefix .. 'parked', user) -- its policy may have been cleared meanwhile
local woken = {}
damage().attempt(user, damage().come_back, user, woken)
local fires = redis.pcall('ZRANGE', prefix .. 'schedules:' .. user, 0, 0, 'WITHSCORES')[2]
if fires then tell_keepers(tonumber(fires)) end
if call('EXISTS', prefix .. 'damaged') == 0 then call('HDEL', state_key, 'damaged') end
for name, tasks in pairs(woken) do wake(name, tasks) end
pass_room_on()
save_state()
return answer(token, 1)

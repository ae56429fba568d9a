#!lua flags=allow-oom
-- Erase what a user has left here that lives in another partition, or what has come of one that does not come after all: one
-- bounded step, to be called until nothing is left. Nobody is told of anything: nothing of it has ended.
-- KEYS[1]  state
-- Returns  1 when more is left, 0 at the end, -1 where there is no such move
-- Cost     O(most log n)
--@include base
--@include state
--@include alive
--@include fair
--@include limits
--@include letter
--@include schedules
--@include policies
--@include suspects
--@include frozen
--@include moves
--@arguments
local record = call('HGET', departing_key, user)
local has_left = record and string.match(record, '(%S+)$') == token
local known = call('HMGET', frozen_key(user), 'token', 'why')
if not has_left and not (known[1] == token and known[2] == 'arrive') then return -1 end
note_mover(user)
local left = most

--@once
local gone = {}

-- Each returns whether all of the key is gone.
function gone.dead(key)
  local ids = call('ZRANGE', key, 0, left - 1)
  for _, id in ipairs(ids) do unlist_dead(user, id) end
  left = left - #ids
  return call('EXISTS', key) == 0
end

function gone.held(key)
  for _, id in ipairs(call('ZRANGE', key, 0, left - 1)) do
    limiting().drop(user, id, call('HGET', task_key(user, id), 'held'))
    call('ZREM', key, id)
    left = left - 1
  end
  return call('EXISTS', key) == 0
end

function gone.offers(key)
  for _, id in ipairs(call('HRANDFIELD', key, left)) do
    limiting().drop(user, id)
    call('HDEL', key, id)
    left = left - 1
  end
  return call('EXISTS', key) == 0
end

local function end_deliveries(key)
  local ids = {}
  for at, entry in ipairs(call('XRANGE', key, '-', '+', 'COUNT', left)) do
    local id = entry[2][2]
    local of = call('HGET', task_key(user, id), 'limited')
    if of then limiting().stop(of, user, id) end
    call('ZREM', suspects_key, user .. ':' .. id)
    ids[at] = entry[1]
  end
  if ids[1] then call('XDEL', key, unpack(ids)) end
  left = left - #ids
  if call('XLEN', key) > 0 then return false end
  call('DEL', key)
  return true
end
gone['critical-stream'], gone['normal-stream'] = end_deliveries, end_deliveries

function gone.schedule(key, id)
  call('ZREM', index_key, user .. ':' .. id)
  for _, list in ipairs({ ended_key, declared_key, broken_key }) do call('ZREM', list, id) end
  call('UNLINK', key)
  return true
end

function gone.policy(key)
  local policy = call('GETDEL', key)
  if not policy then return true end
  if cmsgpack.unpack(policy).max_bytes then count('byte_limits', -1) end
  call('ZREM', prefix .. 'policy-users', user)
  count('policies', -1)
  return true
end

function gone.limit(key, name)
  local of = call('HMGET', key, 'by', 'paused')
  if of[1] or of[2] then count('limits', -1) end
  call('ZREM', prefix .. 'limit-keys', name)
  call('SREM', prefix .. 'paused-tasks', name)
  if call('SREM', prefix .. 'uncounted', name) == 1 and call('EXISTS', prefix .. 'uncounted') == 0 then
    call('HDEL', state_key, 'recount')
  end
  call('UNLINK', key)
  return true
end

local others = {}
local manifest = manifest_key(user)
local name = call('LINDEX', manifest, -1)
while name and left > 0 do
  local kind, rest = string.match(name, '^([^:]*):(.*)$')
  left = left - 1
  if gone[kind] then
    if not gone[kind](prefix .. name, rest) then break end
  else
    others[#others + 1] = prefix .. name
  end
  call('RPOP', manifest)
  name = call('LINDEX', manifest, -1)
end
if others[1] then call('UNLINK', unpack(others)) end

if not name then
  if has_assigned then assignments.withdraw(nodes.user(user)) end
  if has_left then call('HDEL', departing_key, user) else stand_no_more(user) end
  end_move(user)
end
pass_room_on()
save_state()
forget_policies_if_none()
return name and 1 or 0

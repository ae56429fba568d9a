#!lua flags=allow-oom
-- Erase what a user has, one bounded step: call it until nothing is left.
-- KEYS[1]  state
-- Returns  {queued, scheduled, deferred, dead letters, running and told to stop, XCom namespaces, schedules,
--          1 when more is left}
-- Cost     O(most log n)
--@include base
--@include absent
--@include state
--@include alive
--@include task
--@include letter
--@include places
--@include collect
--@include fair
--@include expiry
--@include pointers
--@include limits
--@include depend
--@include schedules
--@include policies
--@include once
--@arguments
local before = answered(nonce)
if before then return before end
refuse_moved(user)
-- An import that is not complete may be given up, all else ends by itself.
local standing_still = call('HGET', frozen_key(user), 'why')
if standing_still and standing_still ~= 'import' then refuse_frozen(user) end
local erased = { 0, 0, 0, 0, 0, 0, 0, 0 }
local left = most

local function drop_ends(id)
  local batch = endings().drop(user, id)
  if batch then endings().batches().erase_if_empty(user, batch) end
end

-- Those that depend on it go with a later step.
local function erase(id)
  deadlines.forget(user, id)
  local unique = redis.pcall('HGET', task_key(user, id), 'unique')
  if type(unique) == 'string' then pointers.let_go(user, id, unique) end
  drop_ends(id)
  call('DEL', prefix .. 'collected:' .. user .. ':' .. id)
  erase_task(user, id)
  publish(user, id, 'canceled')
  left = left - 1 - depend().forget(user, id)
end

local function erase_sorted(key, field)
  local ids = call('ZRANGE', key, 0, left - 1)
  for _, id in ipairs(ids) do
    call('ZREM', key, id)
    if limited then limited.drop(user, id) end
    erase(id)
  end
  count(field, -#ids)
  return #ids
end

local function stop_running(lane)
  local stream = stream_key(lane, user)
  for _, entry in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', math.max(left, 1))) do
    local id = entry[2][2]
    local key = task_key(user, id)
    drop_ends(id)
    if redis.pcall('HSETNX', key, 'canceling', 'purge') == 1 then
      erased[5] = erased[5] + 1
      local worker = call('HGET', key, 'worker')
      if worker then call('SPUBLISH', prefix .. 'wake:' .. worker, user .. ' ' .. id) end
    end
  end
end

-- Reads each key that is to be emptied, so that one of another type shows before anything is written.
local function know_places()
  choice.know(user)
  for _, where in ipairs({ 'critical', 'normal', 'held', 'scheduled', 'dead', 'lapsing', 'schedules', 'expiring' }) do
    call('ZCARD', place_key(where, user))
  end
  call('SCARD', place_key('deferred', user))
  for _, lane in ipairs({ 'critical', 'normal' }) do call('XLEN', stream_key(lane, user)) end
  call('ZCARD', prefix .. 'xcom-spaces:' .. user)
  call('ZCARD', prefix .. 'batches:' .. user)
  call('STRLEN', prefix .. 'policy:' .. user)
end
know_places()

local in_index = { '[' .. user .. ':', '(' .. user .. ';' }
for _, member in ipairs(call('ZRANGE', index_key, in_index[1], in_index[2], 'BYLEX', 'LIMIT', 0, left)) do
  erased[7] = erased[7] + forget_schedule(string.sub(member, #user + 2))
  call('ZREM', index_key, member) -- also of one whose hash is gone
  fire_no_more(user, string.sub(member, #user + 2))
  left = left - 1
end
for _, lane in ipairs({ 'critical', 'normal' }) do
  if left > 0 then erased[1] = erased[1] + erase_sorted(place_key(lane, user), lane) end
end
if left > 0 then
  local held = place_key('held', user)
  for _, id in ipairs(call('ZRANGE', held, 0, left - 1)) do
    local waits = call('HMGET', task_key(user, id), 'lane', 'held')
    count(waits[1], -1)
    limiting().drop(user, id, waits[2])
    erase(id)
    erased[1] = erased[1] + 1
  end
end
if left > 0 then
  erased[2] = erase_sorted(place_key('scheduled', user), 'scheduled')
  if call('EXISTS', place_key('scheduled', user)) == 0 then call('ZREM', due_key, user) end
end
if left > 0 then
  for _, id in ipairs(call('SRANDMEMBER', place_key('deferred', user), left)) do
    depend().leave_deferred(user, id)
    erase(id)
    erased[3] = erased[3] + 1
  end
end
if left > 0 then
  for _, id in ipairs(call('ZRANGE', place_key('dead', user), 0, left - 1)) do
    unlist_dead(user, id)
    erase(id)
    erased[4] = erased[4] + 1
  end
end
-- Those whose time is over.
if left > 0 then
  for _, id in ipairs(call('ZRANGE', place_key('lapsing', user), 0, left - 1)) do
    unlist_dead(user, id)
    erase(id)
  end
end
local spaces = prefix .. 'xcom-spaces:' .. user
if left > 0 then
  local names, keys = call('ZRANGE', spaces, 0, left - 1), {}
  for at, space in ipairs(names) do
    keys[2 * at - 1], keys[2 * at] = prefix .. 'xcom:' .. user .. ':' .. space, prefix .. 'xcom-expiry:' .. user .. ':' .. space
  end
  if names[1] then
    if bytes then bytes.forget_spaces(user, names) end
    call('UNLINK', unpack(keys))
    call('ZREM', spaces, unpack(names))
    erased[6] = #names
  end
end
if left > 0 then left = left - endings().batches().purge(user, left) end
stop_running('critical')
stop_running('normal')
retire(user)
pass_room_on()
if call('EXISTS', spaces, prefix .. 'batches:' .. user, stream_key('critical', user), stream_key('normal', user),
    places_of(user)) > 0 or call('ZLEXCOUNT', index_key, in_index[1], in_index[2]) > 0 then
  erased[8] = 1
else
  call('ZREM', prefix .. 'parked', user)
  call('ZREM', prefix .. 'reserved', user)
  nodes.forget_own_tag(nodes.user(user))
  if has_assigned then assignments.withdraw(nodes.user(user)) end -- while its policy says from where
  call('DEL', prefix .. 'user:' .. user, prefix .. 'metrics:' .. user)
  for day = math.floor(now / 86400000) - 41, math.floor(now / 86400000) do
    call('DEL', prefix .. 'usage:' .. user .. ':' .. string.format('%d', day))
  end
  local policy = call('GETDEL', prefix .. 'policy:' .. user)
  if policy then
    if cmsgpack.unpack(policy).max_bytes then count('byte_limits', -1) end
    call('ZREM', prefix .. 'policy-users', user)
    count('policies', -1)
  end
  collecting().forget(user)
  local counted = bytes or new_bytes()
  counted.forget(user)
  call('ZREM', users_key, user)
  if standing_still then
    count('announcements', -call('LLEN', prefix .. 'announcements:' .. user))
    call('DEL', frozen_key(user), prefix .. 'announcements:' .. user)
    call('ZREM', prefix .. 'damaged', user)
    call('HDEL', prefix .. 'damage', user)
  end
end
save_state()
forget_policies_if_none()
return answer(nonce, erased)

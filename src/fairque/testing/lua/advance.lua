#!lua
-- For tests: move everything that is scheduled towards now, as if time had passed.
-- KEYS[1]  state
-- Returns  {tasks due now, ms moved by all calls of the last day}, or {} when there are more: nothing was moved
-- Cost     O(tasks log tasks)
--@include base
--@include wake
--@arguments
local advanced = prefix .. 'advanced'
local DAY = 86400000

local function is_too_much(users)
  local tasks = 0
  for _, user in ipairs(users) do
    tasks = tasks + call('ZCARD', place_key('scheduled', user)) + call('SCARD', place_key('deferred', user))
  end
  return #users > most or tasks > most
end

local function move_scheduled(user)
  local found, due = call('ZRANGE', place_key('scheduled', user), 0, -1, 'WITHSCORES'), 0
  for at = 1, #found, 2 do
    local moment = found[at + 1] - ms
    call('ZADD', place_key('scheduled', user), moment, found[at])
    local first = call('HGET', task_key(user, found[at]), 'first') -- call, of one that is debounced
    if first then call('HSET', task_key(user, found[at]), 'first', string.format('%d', first - ms)) end
    if math.floor(moment) <= now then due = due + 1 end
  end
  if found[2] then call('ZADD', due_key, math.floor(found[2] - ms), user) end
  return due
end

-- By when tasks must have begun.
local function move_expiring(user)
  local of_user = place_key('expiring', user)
  local found = call('ZRANGE', of_user, 0, -1, 'WITHSCORES')
  for at = 1, #found, 2 do
    local moment = string.format('%d', found[at + 1] - ms)
    call('ZADD', of_user, moment, found[at])
    call('HSET', task_key(user, found[at]), 'expires', moment)
  end
  if found[2] then call('ZADD', prefix .. 'expiring', found[2] - ms, user) end
end

-- They have a time as well, that counts once nothing keeps them back.
local function move_deferred(user)
  for _, id in ipairs(call('SMEMBERS', place_key('deferred', user))) do
    local due = tonumber(call('HGET', task_key(user, id), 'due') or 0)
    if due > 0 then call('HSET', task_key(user, id), 'due', due - ms) end
  end
end

local before = call('HMGET', advanced, 'nonce', 'due', 'total')
if before[1] == nonce then return { tonumber(before[2]), tonumber(before[3]) } end
local users = call('ZRANGE', users_key, 0, most)
if is_too_much(users) then return {} end
local due = 0
for _, user in ipairs(users) do
  local of_user = move_scheduled(user)
  move_deferred(user)
  move_expiring(user)
  if of_user > 0 then wake(user, of_user) end
  due = due + of_user
end
local total = tonumber(before[3] or 0) + ms
call('HSET', advanced, 'nonce', nonce, 'due', due, 'total', total)
call('PEXPIRE', advanced, DAY)
return { due, total }

#!lua flags=allow-oom
-- Give dead letters up: nothing is left of them.
-- KEYS[1]  state
-- Returns  per id: 1 discarded, 0 it is not a dead letter
-- Cost     O(ids)

-- lib/base.lua
-- The queue's keys and its clock. Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash
-- tag.
local call = redis.call
local prefix = string.sub(KEYS[1], 1, -6)
local state_key = KEYS[1]
local ready_key = prefix .. 'ready'
local due_key = prefix .. 'due'
local leases_key = prefix .. 'leases'
local users_key = prefix .. 'users'
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew

-- A user hash nobody touched for this long is forgotten (its policy is a key of its own and stays).
local USER_TTL = 604800000

local function user_key(user) return prefix .. 'user:' .. user end
local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

local function publish(user, id, event) call('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end

-- lib/once.lua
-- A call that is repeated because its reply was cut is answered as the first time. `nonce` names the call.

local ANSWER_TTL = 60000

local function answered(nonce)
  local packed = call('GET', prefix .. 'answer:' .. nonce)
  return packed and cmsgpack.unpack(packed)
end

local function answer(nonce, value)
  call('SET', prefix .. 'answer:' .. nonce, cmsgpack.pack(value), 'PX', ANSWER_TTL)
  return value
end

-- lib/task.lua
-- What goes when a task goes.

-- All that is kept of a task itself, apart from its result and from what waits for what.
local function keys_of_task(user, id) return task_key(user, id), body_key(user, id), errors_key(user, id) end

-- Nothing is left of a task that waits nowhere. Those that wait for it go on waiting, for the next task of this id.
-- Returns whether there are any.
local function erase_task(user, id)
  local key = task_key(user, id)
  local known = call('HMGET', key, 'feeds', 'offered')
  local feeds = known[1]
  if known[2] then call('SREM', prefix .. 'offers:' .. user, id) end
  call('DEL', result_key(user, id), needs_key(user, id), keys_of_task(user, id))
  if feeds then call('HSET', key, 'feeds', 1) end
  return feeds
end

-- A task is no dead letter any more.
local function unlist_dead(user, id)
  call('ZREM', place_key('dead', user), id)
  call('ZREM', prefix .. 'dead', user .. ':' .. id)
end
-- ARGV[1] is the msgpack of Discard: nonce: str, user: str, ids: Sequence[str]
local args = cmsgpack.unpack(ARGV[1])
local nonce, user, ids = args[1], args[2], args[3]
local before = answered(nonce)
if before then return before end
local answers = {}
for at, id in ipairs(ids) do
  local is_dead = call('HGET', task_key(user, id), 'state') == 'failed'
  if is_dead then erase_task(user, id) end
  unlist_dead(user, id)
  answers[at] = is_dead and 1 or 0
end
return answer(nonce, answers)

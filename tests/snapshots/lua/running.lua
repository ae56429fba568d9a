#!lua flags=no-writes
-- What runs: some tasks of each user, so that nobody's many hide the others', or what a worker has.
-- KEYS[1]  state
-- Returns  {now, 1 where there may be more, per task: user, id, name, attempt, ms of its start, worker}
-- Cost     O(lanes looked at + tasks)
local keys_of_call, values_of_call = KEYS, ARGV
local KEYS, ARGV
local calls, NEXT = {}, {}

-- lib/base.lua
-- The queue's keys and its clock. Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash
-- tag.
local call
local prefix
local state_key
local ready_key
local due_key
local leases_key
local users_key
local time
local now_us
local now
local now_text

-- A user hash nobody touched for this long is forgotten (its policy is a key of its own and stays).
local USER_TTL = 604800000

local function user_key(user) return prefix .. 'user:' .. user end
local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function uses_key(user, id) return prefix .. 'uses:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end
local function children_key(user, id) return prefix .. 'children:' .. user .. ':' .. id end
local function ends_key(user, id) return prefix .. 'ends:' .. user .. ':' .. id end

-- What it yields: append.lua.
local function chunks_key(user, id) return prefix .. 'chunks:' .. user .. ':' .. id end

-- The attempt of a task that runs: the first one is not written down, as most tasks need no other.
local function attempt_in(field) return tonumber(field or 1) end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

-- What went wrong, as pcall tells it.
local function text_of(failure) return type(failure) == 'table' and failure.err or tostring(failure) end

-- Not for a key, but as the server does not let one write, or a permission is missing.
local OF_ALL = { '^OOM', '^READONLY', '^MISCONF', '^NOREPLICAS', '^NOPERM', '^NOAUTH', '^CLUSTERDOWN', 'ACL failure' }
local function is_of_all(text)
  for _, pattern in ipairs(OF_ALL) do
    if string.find(text, pattern) then return true end
  end
  return false
end

-- What is damaged of one is not the others': whether it could be done, and what came of it.
local function try_alone(act, ...)
  local is_done, told = pcall(act, ...)
  if not is_done and is_of_all(text_of(told)) then error(told, 0) end
  return is_done, told
end

-- What happened is done, also where nobody may be told of it.
local function publish(user, id, event) redis.pcall('SPUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end
calls[#calls + 1] = function()
  call = redis.call
  prefix = string.sub(KEYS[1], 1, -6)
  state_key = KEYS[1]
  ready_key = prefix .. 'ready'
  due_key = prefix .. 'due'
  leases_key = prefix .. 'leases'
  users_key = prefix .. 'users'
  time = call('TIME')
  now_us = time[1] * 1000000 + time[2]
  now = math.floor(now_us / 1000)
  now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew
  return NEXT
end
return (function()

-- lib/message.lua
-- What scripts read of the body of a task. A body that cannot be read belongs to somebody else.

local LONGEST_HEAD = 2200 -- of a body, with a name of 512 bytes and two limit keys

-- The name of a task, '' where the body cannot be read; second: the name and the limit keys that it was put in with, if it
-- has any, each as {text, its template percent-encoded or nil, whether it is of each user}.
local function heading_in(body)
  local ok, _, heading = pcall(cmsgpack.unpack_one, body, 19)
  if ok and type(heading) == 'table' and type(heading[1]) == 'string' then return heading[1], heading end
  return ok and type(heading) == 'string' and heading or ''
end

local function name_in(body) return (heading_in(body)) end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

-- As far as it can be read.
local function head_of_task(user, id)
  local head = redis.pcall('GETRANGE', body_key(user, id), 0, 17)
  return type(head) == 'string' and head or ''
end

local function cost_of_task(user, id) return cost_of(head_of_task(user, id)) end

local function priority_of(head)
  local priority = string.byte(head, 18) or 3
  return priority >= 1 and priority <= 6 and priority or 3
end
-- ARGV[1] is the msgpack of Running: worker: str, most: int, lanes: int
--   worker: '' for any. most: tasks. lanes: to look at.
local args
local worker, most, lanes
local found
local left

local function note(user, id)
  local fields = call('HMGET', task_key(user, id), 'attempt', 'started', 'worker')
  local name = name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
  for _, value in ipairs({ user, id, name, attempt_in(fields[1]), fields[2] or '', fields[3] or '' }) do
    found[#found + 1] = value
  end
  left = left - 1
end

-- Pairs of a stream id and the id of a task. An error where the stream is damaged, or has no group: nothing is told of it.
local function entries_of(stream, count)
  if worker == '' then return redis.pcall('XRANGE', stream, '-', '+', 'COUNT', count) end
  local entries = {}
  for at, delivery in ipairs(redis.pcall('XPENDING', stream, 'workers', '-', '+', count, worker)) do
    entries[at] = redis.pcall('XRANGE', stream, delivery[1], delivery[1])[1]
  end
  return entries
end

local members
local each
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  worker, most, lanes = args[1], args[2], args[3]
  found = { now, 0 }
  left = most
  members = call('ZRANGE', leases_key, 0, lanes - 1)
  each = worker ~= '' and most or math.max(1, math.floor(most / math.max(1, #members)))
  for _, member in ipairs(members) do
    local lane, user = string.match(member, '^([^:]+):(.*)$')
    local count = math.min(each, left)
    if count == 0 then break end
    local entries = entries_of(stream_key(lane, user), count)
    for _, entry in ipairs(entries) do try_alone(note, user, entry[2][2]) end
    if #entries == count then found[2] = 1 end
  end
  if call('ZCARD', leases_key) > #members or left == 0 then found[2] = 1 end
  return found
end
local function run(its_keys, its_values)
  KEYS, ARGV = its_keys, its_values
  for nth = 1, #calls do
    local came = calls[nth]()
    if came ~= NEXT then return came end
  end
end
return run(keys_of_call, values_of_call)
end)()

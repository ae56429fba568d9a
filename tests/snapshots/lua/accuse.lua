#!lua flags=allow-oom
-- A task stands in the way of everything in its worker, which ends for that: of this death it is known who caused it.
-- KEYS[1]  state
-- Returns  1 noted, 0 it is no longer this worker's
-- Cost     O(1)
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

-- lib/absent.lua
-- Users of whom nothing is to be changed or served here: they stand still, or live in another partition.

-- lib/frozen.lua
-- A user stands still while it is carried elsewhere (dump.lua, import.lua): what waits is in no line, what time would bring waits,
-- and who would change something of it is told so.
-- frozen:<u>  hash  token: whose it is; why: 'export' or 'move', which end by themselves when the key does, 'import' or 'arrive';
--                   at: how many records of an import are there; leaves_until: of an import that is carried elsewhere with its
--                   end, in ms: till then nothing of it changes; ahead: by how much its tag was ahead of the clock. Of one that
--                   arrives: source, where it comes from; passport: lib/passport.lua; n:<total>: what it adds to totals
-- Until then the user is in `damaged` as well, with which everybody leaves it alone: lib/damage.lua.

local function frozen_key(user) return prefix .. 'frozen:' .. user end

local function is_frozen(user) return call('EXISTS', frozen_key(user)) == 1 end

local function refuse_frozen(user)
  if is_frozen(user) then error({ err = 'FROZEN ' .. user }, 0) end
end

-- lib/moved.lua
-- Users who do not live here, though somebody may look for them here, and where they live.
-- moved  hash  user → '<partition> <epoch>'
-- In the state: moved, 1 while there are some, so that a partition that nobody left pays nothing.
-- An epoch is a number that grows with each move of a user: whoever knows a later one is not sent back by an entry that is
-- older, which a partition may have to which the user is on its way.
local moved_to
local refuse_all_moved
local refuse_moved
do

local moved_key

-- Where it lives, as it is written there, or false.
function moved_to(user) return call('HGET', moved_key, user) end

function refuse_moved(user)
  local place = moved_to(user)
  if place then error({ err = 'ELSEWHERE ' .. user .. ' ' .. place }, 0) end
end

-- All of several at once, as they may be many.
function refuse_all_moved(users)
  local told = {}
  for at, place in ipairs(users[1] and call('HMGET', moved_key, unpack(users)) or {}) do
    if place then told[#told + 1] = users[at] .. ' ' .. place end
  end
  if told[1] then error({ err = 'ELSEWHERE ' .. table.concat(told, ' ') }, 0) end
end

-- From now on it does not live here. Who waits for its tasks is told. False: a later move is known.
local function mark_moved(user, partition, epoch)
  local known = tonumber(string.match(moved_to(user) or '', ' (%d+)$') or nil)
  if known and known > epoch then return false end
  local place = string.format('%d %d', partition, epoch)
  call('HSET', moved_key, user, place)
  call('HSET', state_key, 'moved', 1)
  call('ZREM', users_key, user) -- it is listed where it lives
  redis.pcall('SPUBLISH', moved_key, user .. ' ' .. place)
  return true
end

-- It lives here from now on.
local function unmark_moved(user)
  call('HDEL', moved_key, user)
  if call('EXISTS', moved_key) == 0 then call('HDEL', state_key, 'moved') end
end

-- Whether an act failed as its user does not live here.
local function is_of_moved(failure) return string.find(text_of(failure), '^ELSEWHERE ') and true or false end

-- Who is in a group lives where that does: where its root is said to live, as a user is. path: with an '@' in front, or not.
local function refuse_moved_group(path)
  local outermost = path and string.match(path, '^@?([^/]+)')
  if outermost then refuse_moved('@' .. outermost) end
end
calls[#calls + 1] = function()
  moved_key = prefix .. 'moved'
  return NEXT
end
end

local function refuse_absent(user)
  refuse_moved(user) -- first: where it arrives it stands still, and is not there yet
  refuse_frozen(user)
end

-- For what may be said of one that is exported or imported, and must not get lost on the way to another partition.
local function refuse_leaving(user)
  refuse_moved(user)
  local known = call('HMGET', frozen_key(user), 'why', 'leaves_until')
  if known[1] == 'move' or tonumber(known[2] or 0) > now then refuse_frozen(user) end
end
-- ARGV[1] is the msgpack of Accuse: worker: str, lane: str, user: str, id: str, stream_id: str, attempt: int
--   The same of one that stops its worker.
local args
local worker, lane, user, id, stream_id, attempt
local LONG_MS = 1000000000000 -- it counts, however long ago the task began
local key
local known
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  worker, lane, user, id, stream_id, attempt = args[1], args[2], args[3], args[4], args[5], args[6]
  refuse_leaving(user)
  key = task_key(user, id)
  known = call('HMGET', key, 'stream_id', 'attempt', 'worker', 'lost', 'tried')
  if known[1] ~= stream_id or attempt_in(known[2]) ~= attempt or known[3] ~= worker then return 0 end
  call('HSET', key, 'attempt', attempt, 'received', attempt, 'lost', known[4] or 0, 'tried',
    math.max(1, tonumber(known[5] or 0)), 'alone', LONG_MS)
  return 1
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

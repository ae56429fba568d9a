#!lua
-- Note which keys a user has that is to leave this partition. They are erased once it has left: depart.lua, erase.lua.
-- KEYS[1]  state
-- Returns  how many are noted, or -1 where it stands still no more, or by another's will
-- Cost     O(names)
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

-- lib/moves.lua
-- Users on their way from one partition to another, and whoever sees to it that they arrive.
-- moves         zset  user → ms from which on another may see to it: its mover was heard of 10 s before
-- departing     hash  user → '<partition> <epoch> <token>': it lives there from now on; what is here of it is erased
-- manifest:<u>  list  keys without their prefix, the first to be erased last: where it leaves what it has, where it arrives
--                     what has come so far
-- In the state: moves, 1 while there are some.
local departing_key
local manifest_key
local moves_key
do

local MOVER_MS = 10000
function manifest_key(user) return prefix .. 'manifest:' .. user end

-- Its mover lives.
local function note_mover(user)
  call('ZADD', moves_key, now + MOVER_MS, user)
  call('HSET', state_key, 'moves', 1)
end

local function end_move(user)
  call('DEL', manifest_key(user))
  call('ZREM', moves_key, user)
  if call('EXISTS', moves_key) == 0 then call('HDEL', state_key, 'moves') end
end

-- It does not stand still here any more.
local function stand_no_more(user)
  call('DEL', prefix .. 'frozen:' .. user)
  call('ZREM', prefix .. 'damaged', user)
  call('HDEL', prefix .. 'damage', user)
  if call('EXISTS', prefix .. 'damaged') == 0 then call('HDEL', state_key, 'damaged') end
end
calls[#calls + 1] = function()
  moves_key, departing_key = prefix .. 'moves', prefix .. 'departing'
  return NEXT
end
end
-- ARGV[1] is the msgpack of Manifest: user: str, token: str, first: int, names: Sequence[str]
--   token: of the move. first: how many names come before these. names: of keys, without their prefix.
local args
local user, token, first, names
local HOUR_MS = 3600000
local key
local there
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  user, token, first, names = args[1], args[2], args[3], args[4]
  if call('HGET', frozen_key(user), 'token') ~= token then return -1 end
  key = manifest_key(user)
  if first == 0 then call('DEL', key) end
  there = call('LLEN', key)
  if there == first and names[1] then
    there = call('RPUSH', key, unpack(names))
    call('PEXPIRE', key, HOUR_MS) -- it may come to nothing
  end
  return there
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

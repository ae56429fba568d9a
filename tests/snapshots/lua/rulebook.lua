#!lua flags=no-writes
-- All that governs all users: the policy of everybody, limits that are not of one user, and pauses of tasks.
-- KEYS[1]  state
-- Returns  {its revision, the policy as a msgpack map or '', the revision at which places were forfeited last, per record {its name, what is set by hand, what code declares,
--          1 where it is paused; each '' where it is not}}; or {its revision}, where that is not newer
-- Cost     O(limits)
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

-- lib/revision.lua
-- What governs all users (the policy of everybody, limits that are not of one user, pauses of tasks) is the same in each
-- partition of a queue, and has a revision: changes are numbered by the first partition, and each other one takes those it
-- lacks, in their order, before it serves. `revision` of the state. Of a call: 0, it is about a user, or the queue has no
-- partitions; -1: this is the first partition, which numbers it; else the number that the first one gave it.
local follows
local known_revision
do

function known_revision() return tonumber(call('HGET', state_key, 'revision') or 0) end

-- Whether what the call brings is not the next change: it is known, or others come before it.
function follows(revision) return revision > 0 and known_revision() ~= revision - 1 end

local function note_revision(revision, has_changed)
  if revision > 0 or (revision < 0 and has_changed) then call('HINCRBY', state_key, 'revision', 1) end
end
end
-- ARGV[1] is the msgpack of Rulebook: newer_than: int
--   newer_than: of an older one the revision is told alone.
local args
local newer_than
local found
local function add(from, to)
  for _, record in ipairs(call('ZRANGEBYLEX', prefix .. 'limit-keys', from, to)) do
    local said = call('HMGET', prefix .. 'limit:' .. record, 'hand', 'code', 'paused')
    found[#found + 1] = { record, said[1] or '', said[2] or '', said[3] or '' }
  end
end
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  newer_than = args[1]
  if known_revision() <= newer_than then return { known_revision() } end
  found = { known_revision(), call('GET', prefix .. 'policy:*') or '',
    tonumber(call('HGET', state_key, 'forfeited_at') or 0) }
  add('[:', '(;') -- of no user: that would be in front
  add('[=', '(>')
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

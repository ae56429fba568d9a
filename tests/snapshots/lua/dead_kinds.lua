#!lua flags=no-writes
-- Dead letters by the kind of their error: of one user, or of all.
-- KEYS[1]  state
-- Returns  {now, letters in all, per kind that has a list: kind, letters, ms of the oldest and of the latest}
-- Cost     O(kinds log letters), which is bounded
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

-- lib/dead_kinds.lua
-- Dead letters by the kind of their error, 'error ValueError': the kind of the failure and the name of the class. Of a user, and of
-- the queue (`*`), so many kinds have lists of their own; letters of further ones are in none. A kind that has one keeps it
-- until its letters are gone, so that many kinds of one user push out none of another.
-- dead-kinds:<u>, dead-kinds:*     zset  kind → ms of its latest letter
-- dead-of:<u>:<k>                  zset  id → ms
-- dead-of:*:<k>                    zset  <u>:<id> → ms
-- These lists are beside the letters: where one is damaged, letters come and go without it, and `check` mends it.
local kinds_key
local letters_key
local letters_name
local list_by_kind
local take_from
local unlist_by_kind
do
local MOST_KINDS_OF_USER, MOST_KINDS_OF_ALL = 20, 500
local LONGEST_KIND = 200
local KINDS_FORGOTTEN = 100
local softly

function kinds_key(whose) return prefix .. 'dead-kinds:' .. whose end
function letters_name(whose, kind) return 'dead-of:' .. whose .. ':' .. kind end
function letters_key(whose, kind) return prefix .. letters_name(whose, kind) end

-- Of an error, as models.Attempt has it; '' where it cannot be read. Cut between two characters.
local function kind_in(error_record)
  local is_read, _, _, _, failure, name = pcall(cmsgpack.unpack_limit, error_record, 4, 1)
  if not is_read or type(failure) ~= 'string' or type(name) ~= 'string' then return '' end
  local kind, last = failure .. ' ' .. name, LONGEST_KIND
  if #kind <= last then return kind end
  while last > 0 and string.byte(kind, last + 1) >= 128 and string.byte(kind, last + 1) < 192 do last = last - 1 end
  return string.sub(kind, 1, last)
end

-- Whether it has a list, or there is room for one.
local function has_list(whose, kind, most, ttl)
  local key = kinds_key(whose)
  if type(softly('ZSCORE', key, kind)) == 'string' then return true end
  if (tonumber(softly('ZCARD', key)) or most) < most then return true end
  softly('ZREMRANGEBYSCORE', key, '-inf', now - ttl)
  return (tonumber(softly('ZCARD', key)) or most) < most
end

local function put_under(whose, kind, member, at, most, ttl)
  if not has_list(whose, kind, most, ttl) then return false end
  local kinds, letters = kinds_key(whose), letters_key(whose, kind)
  softly('ZADD', kinds, 'GT', at, kind)
  softly('PEXPIRE', kinds, ttl)
  softly('ZADD', letters, at, member)
  softly('PEXPIRE', letters, ttl)
  local old = tonumber(softly('ZCOUNT', letters, '-inf', now - ttl)) or 0
  if old > 0 then softly('ZREMRANGEBYRANK', letters, 0, math.min(old, KINDS_FORGOTTEN) - 1) end
  return true
end

-- A task became a dead letter. Returns what its record keeps: the kind, or '' where that has no list. `dead_apart` of it says
-- that it is not among those of the queue.
function list_by_kind(user, id, error_record, at, ttl)
  local kind = kind_in(error_record)
  if kind == '' or not put_under(user, kind, id, at, MOST_KINDS_OF_USER, ttl) then return '' end
  if not put_under('*', kind, user .. ':' .. id, at, MOST_KINDS_OF_ALL, ttl) then softly('HSET', task_key(user, id), 'dead_apart', 1) end
  return kind
end

function take_from(whose, kind, member)
  local letters = letters_key(whose, kind)
  if softly('ZREM', letters, member) == 1 and softly('EXISTS', letters) == 0 then softly('ZREM', kinds_key(whose), kind) end
end

-- It is none any more. Where its record is gone, all kinds of its user are looked at.
function unlist_by_kind(user, id)
  local kind = softly('HGET', task_key(user, id), 'dead_kind')
  local kinds = type(kind) == 'string' and { kind } or softly('ZRANGE', kinds_key(user), 0, -1)
  for _, each in ipairs(kinds) do
    if each ~= '' then
      take_from(user, each, id)
      take_from('*', each, user .. ':' .. id)
    end
  end
end
calls[#calls + 1] = function()
  softly = redis.pcall
  return NEXT
end
end
-- ARGV[1] is the msgpack of DeadKinds: user: str, dead_letter_ttl_ms: int
--   user: '' for all.
local args
local user, dead_letter_ttl_ms
local whose
local first
local found

local function note(kind)
  local letters = letters_key(whose, kind)
  local many = call('ZCOUNT', letters, first, '+inf')
  if many == 0 then return end
  local oldest = call('ZRANGEBYSCORE', letters, first, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  for _, value in ipairs({ kind, many, oldest, call('ZRANGE', letters, -1, -1, 'WITHSCORES')[2] }) do
    found[#found + 1] = value
  end
end

calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  user, dead_letter_ttl_ms = args[1], args[2]
  if user ~= '' then refuse_moved(user) end
  whose = user == '' and '*' or user
  first = string.format('%d', now - dead_letter_ttl_ms)
  found = { now, call('ZCOUNT', user == '' and prefix .. 'dead' or place_key('dead', user), first, '+inf') }
  for _, kind in ipairs(redis.pcall('ZRANGE', kinds_key(whose), 0, -1)) do try_alone(note, kind) end
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

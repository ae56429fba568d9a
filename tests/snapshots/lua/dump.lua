#!lua flags=no-writes
-- What is in keys of a user that stands still, a page of each.
-- KEYS[1]  state
-- Returns  nil where it stands still no more, or by another's will; else per key, as far as they fit: {where the next page
--          begins, '' for the last; ms since the epoch when the key expires, -1: never, -2: it is gone; parts ...}. Parts are
--          those of records: import.lua
-- Cost     O(parts)
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
-- ARGV[1] is the msgpack of Dump: user: str, token: str, most_bytes: int, keys: list[DumpedKey]
--   token: as of `Freeze`. most_bytes: of parts, after which no further key is read.
-- DumpedKey: name: str, kind: str, start: str
--   name: without the prefix. kind: its type. start: '' or where the page begins.
local args
local user, token, most_bytes, keys

local COUNT, ENTRIES = 500, 8
local read = {}

function read.string(key)
  local value = call('GET', key)
  return '', value and { value } or {}
end

local function by_rank(command, with)
  return function(key, from)
    local first = tonumber(from ~= '' and from or 0)
    local page = call(command, key, first, first + COUNT - 1, with)
    local has_more = #page == COUNT * (with and 2 or 1)
    return has_more and string.format('%d', first + COUNT) or '', page
  end
end
function read.list(key, from)
  local first = tonumber(from ~= '' and from or 0)
  local page = call('LRANGE', key, first, first + COUNT - 1)
  return #page == COUNT and string.format('%d', first + COUNT) or '', page
end

local function by_cursor(command)
  return function(key, from)
    local page = call(command, key, from ~= '' and from or '0', 'COUNT', COUNT)
    return page[1] ~= '0' and page[1] or '', page[2]
  end
end

-- Per entry: its id, how many words it has, the words.
function read.stream(key, from)
  local page, parts = call('XRANGE', key, from ~= '' and '(' .. from or '-', '+', 'COUNT', ENTRIES), {}
  for _, entry in ipairs(page) do
    parts[#parts + 1], parts[#parts + 2] = entry[1], string.format('%d', #entry[2])
    for _, word in ipairs(entry[2]) do parts[#parts + 1] = word end
  end
  return #page == ENTRIES and page[ENTRIES][1] or '', parts
end

-- Of deliveries: per one its id, its worker, how often it was delivered, its task.
local DELIVERIES = 200
function read.deliveries(key, from)
  local page, parts = call('XRANGE', key, from ~= '' and '(' .. from or '-', '+', 'COUNT', DELIVERIES), {}
  if not page[1] then return '', parts end
  local pending, held_by = redis.pcall('XPENDING', key, 'workers', page[1][1], page[#page][1], DELIVERIES), {}
  for _, each in ipairs(pending) do held_by[each[1]] = each end -- none where its group was lost
  for _, entry in ipairs(page) do
    local of, id = held_by[entry[1]], entry[2][2]
    local at = #parts
    parts[at + 1], parts[at + 2] = entry[1], of and of[2] or call('HGET', task_key(user, id), 'worker') or 'nobody'
    parts[at + 3], parts[at + 4] = of and string.format('%d', of[4]) or '1', id
  end
  return #page == DELIVERIES and page[DELIVERIES][1] or '', parts
end

local pages, size
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  user, token, most_bytes, keys = args[1], args[2], args[3], args[4]
  if call('HGET', frozen_key(user), 'token') ~= token then return false end
  read.zset = by_rank('ZRANGE', 'WITHSCORES')
  read.hash, read.set = by_cursor('HSCAN'), by_cursor('SSCAN')
  pages, size = {}, 0
  for at, dumped in ipairs(keys) do
    local name, kind, start = dumped[1], dumped[2], dumped[3]
    local key = prefix .. name
    local next_from, parts = read[kind](key, start)
    pages[at] = { next_from, call('PEXPIRETIME', key), unpack(parts) }
    for _, part in ipairs(parts) do size = size + #part end
    if size > most_bytes then break end
  end
  return pages
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

#!lua flags=no-writes
-- Dead letters, the oldest first: of one user, or of all.
-- KEYS[1]  state
-- Returns  per letter: user, id, ms, result record or '', message body
-- Cost     O(log² letters + returned)
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

-- What happened is done, also where nobody may be told of it.
local function publish(user, id, event) redis.pcall('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end
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

-- lib/ranks.lua
-- Places in a sorted set of members by ms, many of which share one: those that one script wrote.
local rank_at
do

-- Byte by byte, as Redis sorts; `<` goes by the locale of the server.
local function is_behind(member, other)
  for at = 1, math.min(#member, #other) do
    local one, two = string.byte(member, at), string.byte(other, at)
    if one ~= two then return one > two end
  end
  return #member > #other
end

-- How many stand before this place, at which there may be nobody (any more). counts_own: who stands there counts as well.
function rank_at(key, ms, member, counts_own)
  local score = string.format('%d', ms)
  local low, high = call('ZCOUNT', key, '-inf', '(' .. score), call('ZCOUNT', key, '-inf', score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local there = call('ZRANGE', key, middle, middle)[1]
    if is_behind(there, member) or (there == member and not counts_own) then high = middle else low = middle + 1 end
  end
  return low
end
end
-- ARGV[1] is the msgpack of Dead: user: str, most: int, after_ms: int, after: str, dead_letter_ttl_ms: int
--   user: '' for all. after_ms, after: the page begins behind the letter with this score and member; 0 and '': at the
--   first.
local args
local user, most, after_ms, after, dead_letter_ttl_ms
local key
local letters

local function note(member, ms)
  local of, id = user, member
  if user == '' then
    local colon = string.find(member, ':', 1, true)
    of, id = string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
  end
  local body = call('GET', body_key(of, id))
  if not body then return end -- expired with its TTL; the index is pruned by the next failure
  letters[#letters + 1] = { of, id, ms, call('GET', result_key(of, id)) or '', body }
end

-- The rank of the first letter behind `after`, which may be gone by now.
local function first_rank()
  local behind = after == '' and 0 or rank_at(key, after_ms, after, true)
  return math.max(behind, call('ZCOUNT', key, '-inf', '(' .. string.format('%d', now - dead_letter_ttl_ms)))
end

local rank
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  user, most, after_ms, after, dead_letter_ttl_ms = args[1], args[2], args[3], args[4], args[5]
  key = user == '' and prefix .. 'dead' or place_key('dead', user)
  letters = {}
  rank = first_rank()
  while #letters < most do
    local page = call('ZRANGE', key, rank, rank + most - 1, 'WITHSCORES')
    if #page == 0 then break end
    for at = 1, #page, 2 do
      if #letters < most then note(page[at], page[at + 1]) end
    end
    rank = rank + most
  end
  return letters
end
local function run(its_keys, its_values)
  KEYS, ARGV = its_keys, its_values
  for _, at_call in ipairs(calls) do
    local came = at_call()
    if came ~= NEXT then return came end
  end
end
return run(keys_of_call, values_of_call)
end)()

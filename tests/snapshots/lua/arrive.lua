#!lua
-- A user is to come from another partition: it stands still here, without an end; or go on with that.
-- KEYS[1]  state
-- Returns  {'arriving', how many of its records are here} | {'leaving'}: what an earlier move has left here goes first |
--          {'other', why, token}: somebody else has it | {'known'}: it has something here
-- Cost     O(log users)
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

-- lib/state.lua
-- What the queue keeps of itself: read once, and written back by save_state().
local arrival
local clearing_known
local count
local counts
local forfeited_at
local has_announcements
local has_assigned
local has_byte_limits
local has_damaged
local has_expiring
local has_in_hand
local has_limits
local has_moved
local has_policies
local has_returned
local has_weights
local hunt_known
local is_weighing
local keeper_known
local leaves_limits_alone
local next_arrival
local of_queue
local revision_known
local root
local save_bytes
local save_lines
local save_state
local save_tallies
local silent_at_known
local sweep_asked
local tell_of_moments
do

local fields_of_queue
local saved_clock, saved_arrival, saved_mean

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- Totals of the queue. One that is no number begins anew.
function count(field, by) counts[field] = (counts[field] or 0) + by end


-- A line that is of another type fails the call, but costs it no total. One that cannot be counted up is set.
function save_state()
  if save_tallies then save_tallies() end
  if save_bytes then save_bytes() end
  local is_done, failure = true, nil
  if save_lines then is_done, failure = pcall(save_lines) end
  local put = {}
  local function set(field, value) put[#put + 1], put[#put + 2] = field, value end
  for field, by in pairs(counts) do
    if by ~= 0 then set(field, (tonumber(of_queue[field]) or 0) + by) end
  end
  if root.clock ~= saved_clock then set('clock', root.clock) end -- writing a fraction takes long
  if root.mean ~= saved_mean then set('mean', root.mean) end
  if arrival ~= saved_arrival then set('arrival', arrival) end
  local told = put[1] and redis.pcall('HSET', state_key, unpack(put))
  if type(told) == 'table' then -- a permission that is missing costs no total either
    for field, by in pairs(counts) do
      if by ~= 0 then call('HINCRBY', state_key, field, by) end
    end
    error(told, 0)
  end
  if tell_of_moments then tell_of_moments() end
  if not is_done then error(failure, 0) end
end
calls[#calls + 1] = function()
  of_queue, fields_of_queue = {}, call('HGETALL', state_key) -- few: to ask for those that may be there takes longer
  for at = 1, #fields_of_queue, 2 do of_queue[fields_of_queue[at]] = fields_of_queue[at + 1] end
  arrival = tonumber(of_queue.arrival or 0)
  has_policies, has_assigned = of_queue.policies, of_queue.assigned
  clearing_known = of_queue.clearing or '' -- lib/suspects.lua
  has_announcements, has_limits, keeper_known = of_queue.announcements, of_queue.limits, of_queue.keeper or ''
  has_weights, sweep_asked, has_returned = of_queue.weighted, of_queue.sweep, of_queue.returning
  has_byte_limits, is_weighing = tonumber(of_queue.byte_limits or 0) > 0, of_queue.weighing
  has_in_hand = tonumber(of_queue.in_hand or 0) -- lib/limits.lua
  has_damaged = of_queue.damaged -- lib/damage.lua
  hunt_known, silent_at_known = of_queue.hunt, of_queue.silent_at -- lib/hunt.lua, lib/silence.lua
  has_expiring = of_queue.expiring -- lib/expiry.lua
  root = { clock = tonumber(of_queue.clock or 0), mean = tonumber(of_queue.mean or 0) } -- the first line: lib/lines.lua
  root.elsewhere = tonumber(of_queue.elsewhere) -- of a partition: the time of the queue, see lib/between.lua
  has_moved = of_queue.moved -- lib/moved.lua
  revision_known = tonumber(of_queue.revision or 0) -- lib/revision.lua
  forfeited_at = tonumber(of_queue.forfeited_at or 0) -- the revision at which places of a partition were: lib/loans.lua
  saved_clock, saved_arrival, saved_mean = root.clock, arrival, root.mean
  counts = {}
  save_bytes = nil -- a function in scripts that count bytes: lib/bytes.lua
  return NEXT
end
end

-- lib/alive.lua
-- A queue whose `state` is lost stops here and says so: whether it has policies and limits, its clock and its totals are
-- gone. One that was never used has no settings either.

calls[#calls + 1] = function()
  if not of_queue.arrival and call('EXISTS', prefix .. 'settings') == 1 then
    return redis.error_reply('LOSTSTATE the key "state" of this queue is lost, and nothing can be put in or served: run '
      .. '`fairque doctor --repair`, which begins it anew and counts')
  end
  return NEXT
end

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
local note_mover
do

local MOVER_MS = 10000
function manifest_key(user) return prefix .. 'manifest:' .. user end

-- Its mover lives.
function note_mover(user)
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
-- ARGV[1] is the msgpack of Arrive: user: str, token: str, source: int, passport: Value
--   token: of the move. source: the partition that it comes from. passport: as freeze.lua has it.
local args
local user, token, source, passport
local key
local known
local index
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  user, token, source, passport = args[1], args[2], args[3], ARGV[args[4]] or ''
  if call('HEXISTS', departing_key, user) == 1 then return { 'leaving' } end
  key = frozen_key(user)
  known = call('HMGET', key, 'token', 'why', 'at')
  if known[1] and known[1] ~= token then return { 'other', known[2], known[1] } end
  if known[1] then
    note_mover(user)
    return { 'arriving', tonumber(known[3]) }
  end
  index = prefix .. 'schedule-index'
  if call('ZSCORE', users_key, user) or call('EXISTS', prefix .. 'policy:' .. user, prefix .. 'xcom-spaces:' .. user) > 0
      or call('ZLEXCOUNT', index, '[' .. user .. ':', '(' .. user .. ';') > 0 then
    return { 'known' }
  end
  call('HSET', key, 'token', token, 'why', 'arrive', 'at', 0, 'source', source, 'passport', passport)
  call('ZADD', prefix .. 'damaged', 'inf', user)
  call('HSET', prefix .. 'damage', user, 'stands still, as it comes from another partition')
  call('HSET', state_key, 'damaged', 1)
  note_mover(user)
  return { 'arriving', 0 }
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

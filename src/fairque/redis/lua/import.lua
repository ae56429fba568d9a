#!lua
-- Write records of a user that is imported, or arrives from another partition: all of a call, or none. What is there already
-- of them stays as it is.
-- KEYS[1]  state
-- Returns  how many records of the import are there, {'lapsed'}: there is no such import, {'gap', how many}: some before these
--          are missing, {'taken', id}: a schedule of another user has this id, {'type', key}: what is there is of another
--          type
-- Cost     O(parts log n)
--@include base
--@include state
--@include alive
--@include fair
--@include limits
--@include dead_kinds
--@include schedules
--@include frozen
--@include moved
--@include moves
--@arguments
local marker = frozen_key(user)
local known = call('HMGET', marker, 'token', 'why', 'at')
local arrives = known[2] == 'arrive'
if known[1] ~= token or not (arrives or known[2] == 'import') then return { 'lapsed' } end
local there = tonumber(known[3])
if first > there then return { 'gap', there } end

local function parts_of(record)
  local parts = {}
  for at, position in ipairs(record) do parts[at] = ARGV[position] or '' end
  return parts
end

-- Scores come before members in ZADD, and behind them in a record.
local function scored(parts)
  local turned = {}
  for at = 1, #parts, 2 do turned[at], turned[at + 1] = parts[at + 1], parts[at] end
  return turned
end

-- As many words as a call of Lua may have. Returns what the calls returned, together.
local function in_steps(command, key, words)
  local sum = 0
  for at = 1, #words, 2000 do sum = sum + call(command, key, unpack(words, at, math.min(at + 1999, #words))) end
  return sum
end

--@once
local write = {}
function write.string(key, parts) call('SET', key, parts[1]) end
function write.hash(key, parts) return in_steps('HSET', key, parts) end
function write.set(key, parts) return in_steps('SADD', key, parts) end
function write.list(key, parts) in_steps('RPUSH', key, parts) return #parts end
function write.zset(key, parts) return in_steps('ZADD', key, scored(parts)) end
function write.stream(key, parts)
  local at = 1
  while parts[at] do
    local words = tonumber(parts[at + 1])
    call('XADD', key, parts[at], unpack(parts, at + 2, at + 1 + words))
    at = at + 2 + words
  end
end

-- Of deliveries: per one its id, its worker, how often it was delivered, its task.
function write.deliveries(key, parts)
  local made = redis.pcall('XGROUP', 'CREATE', key, 'workers', '0', 'MKSTREAM')
  if made.err and not string.find(made.err, '^BUSYGROUP') then error(made, 0) end
  for at = 1, #parts, 4 do
    call('XADD', key, parts[at], 'id', parts[at + 3])
    call('XCLAIM', key, 'workers', parts[at + 1], '0', parts[at], 'RETRYCOUNT', parts[at + 2], 'FORCE', 'JUSTID')
  end
  return #parts / 4
end

-- What follows from a record: total of the queue, and lists of the queue that name what it has.
local COUNTED = { critical = 'critical', normal = 'normal', scheduled = 'scheduled', deferred = 'deferred', announcements = 'announcements',
  ['critical-stream'] = 'started', ['normal-stream'] = 'started' }
--@once
local follow = {}

function follow.dead(_, parts)
  local own, all = place_key('dead', user), prefix .. 'dead'
  call('PEXPIRE', own, dead_letter_ttl_ms)
  for at = 1, #parts, 2 do
    local id, ms = parts[at], parts[at + 1]
    call('ZADD', all, ms, user .. ':' .. id)
    local kind = list_by_kind(user, id, call('LINDEX', errors_key(user, id), -1) or '', ms, dead_letter_ttl_ms)
    if call('EXISTS', task_key(user, id)) == 1 then call('HSET', task_key(user, id), 'dead_kind', kind) end
  end
  call('PEXPIRE', all, dead_letter_ttl_ms)
end

function follow.xcom(space, parts)
  local of = user .. ':' .. space
  local values, expiries, spaces = prefix .. 'xcom:' .. of, prefix .. 'xcom-expiry:' .. of, prefix .. 'xcom-spaces:' .. user
  local last = math.max(0, call('PEXPIRETIME', values))
  for at = 1, #parts, 2 do
    local expiry = struct.unpack('>d', parts[at + 1])
    call('ZADD', expiries, expiry, parts[at])
    last = math.max(last, expiry)
  end
  local ends = string.format('%d', last)
  call('ZADD', spaces, 'GT', ends, space)
  for _, key in ipairs({ values, expiries, spaces }) do
    if call('PEXPIRETIME', key) < last then call('PEXPIREAT', key, ends) end
  end
end

function follow.schedule(id)
  call('ZADD', index_key, 0, user .. ':' .. id)
  local ends = call('HGET', schedule_key(id), 'state') == 'ended'
  if ends then call('ZADD', ended_key, string.format('%d', now + dead_letter_ttl_ms), id) end
  if arrives and call('HEXISTS', schedule_key(id), 'declared') == 1 then call('ZADD', declared_key, now, id) end
end

-- What counts for limits does so here.
local function count_running(_, parts)
  for at = 4, #parts, 4 do
    local of = call('HGET', task_key(user, parts[at]), 'limited')
    for _, k in ipairs(of and limiting().keys_in(of) or {}) do call('SADD', prefix .. 'running:' .. k, user .. ':' .. parts[at]) end
  end
end
follow['critical-stream'], follow['normal-stream'] = count_running, count_running

-- Of one that arrives: others come by the scripts that set them.
function follow.policy(_, parts)
  call('ZADD', prefix .. 'policy-users', 0, user)
  count('policies', 1)
  if cmsgpack.unpack(parts[1]).max_bytes then count('byte_limits', 1) end
end

function follow.limit(name, parts)
  local record, of = user .. name, {}
  for at = 1, #parts, 2 do of[parts[at]] = true end
  call('ZADD', prefix .. 'limit-keys', 0, record)
  if of.by or of.paused then count('limits', 1) end
  if of.paused then call('SADD', prefix .. 'paused-tasks', record) end
  if of.uncounted then
    call('SADD', prefix .. 'uncounted', record)
    call('HSET', state_key, 'recount', '0')
  end
end

-- Without its prefix.
local function name_of_record(kind, name)
  if kind == 'schedule' then return 'schedule:' .. name end
  if kind == 'limit' or kind == 'limit-rate' then return kind .. ':' .. user .. name end
  return kind .. ':' .. user .. (name ~= '' and ':' .. name or '')
end
local function key_of_record(kind, name) return prefix .. name_of_record(kind, name) end
local TYPES = { deliveries = 'stream' }

-- Reads all that will be written, so that what is not as it should be shows before.
local function refusal_of(record)
  --@fields ImportedRecord record
  if redis_type == 'none' then return end -- set by a call of its own
  local key = key_of_record(kind, name)
  local found = call('TYPE', key).ok
  if found ~= 'none' and found ~= (TYPES[redis_type] or redis_type) then return { 'type', key } end
  -- Whoever moves that group looks for those who are on their way to it as well, but only once.
  if kind == 'policy' and has_moved then refuse_moved_group(cmsgpack.unpack(parts_of(parts)[1]).group) end
  if kind == 'schedule' and found == 'hash' and call('HGET', key, 'user') ~= user then return { 'taken', name } end
end

local function keep(record)
  --@fields ImportedRecord record
  if redis_type == 'none' then return end
  local key, all = key_of_record(kind, name), parts_of(parts)
  local added = write[redis_type](key, all)
  if expires_ms >= 0 then call('PEXPIREAT', key, string.format('%d', expires_ms)) end
  if COUNTED[kind] and arrives then
    call('HINCRBY', marker, 'n:' .. COUNTED[kind], added) -- it counts where it was, until it leaves
  elseif COUNTED[kind] then
    count(COUNTED[kind], added)
  end
  if arrives then call('RPUSH', manifest_key(user), name_of_record(kind, name)) end
  if follow[kind] then follow[kind](name, all) end
end

local begin = there - first + 1
for at = begin, #records do
  local refused = refusal_of(records[at])
  if refused then return refused end
end
for at = begin, #records do keep(records[at]) end
there = math.max(there, first + #records)
call('HSET', marker, 'at', there)
if arrives then note_mover(user) end
save_state()
return there

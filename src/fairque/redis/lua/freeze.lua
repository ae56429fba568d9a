#!lua flags=allow-oom
-- Have a user stand still, as it is exported, imported or moved away; or go on with that.
-- KEYS[1]  state
-- Returns  {'frozen', how many records of an import are there, by how much its tag was ahead of the clock, and of one that
--          may leave this partition what it takes along: lib/passport.lua} | {'other', why}: somebody else has it | {'lapsed'}: it was to
--          stand still, and does not any more | {'known'}: it is to be imported, and has something
-- Cost     O(log users)
--@include base
--@include state
--@include alive
--@include fair
--@include limits
--@include moved
--@include passport
--@arguments
local key = frozen_key(user)
refuse_moved(user)
local known = call('HMGET', key, 'token', 'why', 'at', 'ahead')
if known[1] and known[1] ~= token then return { 'other', known[2] } end
if renews and not known[1] then return { 'lapsed' } end

-- What is known of a user that is not in these is no more than leftovers, which whoever imports looks for.
local function is_known()
  local index = prefix .. 'schedule-index'
  return call('ZSCORE', users_key, user) or call('EXISTS', prefix .. 'policy:' .. user, prefix .. 'xcom-spaces:' .. user) > 0
    or call('ZLEXCOUNT', index, '[' .. user .. ':', '(' .. user .. ';') > 0
end
if why == 'import' and not known[1] and is_known() then return { 'known' } end

-- Each of its lists is looked for in these by its first moment, or its turn.
local INDEXES = { 'due', 'expiring', 'lapsing', 'batches', 'announcements', 'schedules', 'held-turns', 'parked', 'swept', 'reserved' }

local function ahead_of_clock()
  local u = nodes.user(user)
  local tag = nodes.is_ready(u) or nodes.cap_of(u) or lines.own_tag(u.up, u.member)
  return string.format('%.17g', tag and math.max(0, tag - u.up.clock) or 0)
end

local function set_aside()
  choice.know(user)
  known[4] = ahead_of_clock()
  choice.retire(nodes.user(user))
  if on_held_back then on_held_back(user) end
  for _, index in ipairs(INDEXES) do call('ZREM', prefix .. index, user) end
  for _, lane in ipairs({ 'critical', 'normal' }) do call('ZREM', leases_key, lane .. ':' .. user) end
  pass_room_on()
end

local passport = (why == 'import' or why == 'move' and not known[1]) and passport_of(user, why == 'move') or ''
if not known[1] then set_aside() end
local ends_by_itself = ms > 0 and why ~= 'import'
local until_ms = ends_by_itself and string.format('%d', now + ms) or 'inf'
call('HSET', key, 'token', token, 'why', why, 'ahead', known[4])
if why == 'import' then call('HSET', key, 'leaves_until', string.format('%d', now + ms)) end
if ends_by_itself then
  call('PEXPIRE', key, ms)
  note_moment(now + ms, user)
else
  call('HSETNX', key, 'at', 0)
  call('ZADD', users_key, 'NX', now, user)
end
call('ZADD', prefix .. 'damaged', until_ms, user)
local REASONS = { export = 'it is exported', import = 'its import is not complete', move = 'it is moved to another partition' }
call('HSET', prefix .. 'damage', user, 'stands still, as ' .. REASONS[why])
call('HSET', state_key, 'damaged', 1)
save_state()
return { 'frozen', tonumber(known[3] or 0), known[4], passport }

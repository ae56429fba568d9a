#!lua flags=no-writes
-- Count what users have, and tell what the queue says of its totals.
-- KEYS[1]  state
-- Returns  {version of the state, {total, ...} as the state has them or '', {sum, ...} of these users, users first seen
--          since then (at most 100), held tasks of each user}; or nil where a key has a wrong type. The totals: critical,
--          normal, started, scheduled, deferred, announcements, in_hand
-- Cost     O(users + held tasks)
--@include base
--@include version
--@include moved
--@arguments
local FIELDS = { 'critical', 'normal', 'started', 'scheduled', 'deferred', 'announcements', 'in_hand' }
local sums, cards = { critical = 0, normal = 0, started = 0, scheduled = 0, deferred = 0, announcements = 0, in_hand = 0 }, {}
local function add(field, by) sums[field] = sums[field] + by end

-- Of one that arrives, or has left, nothing counts here, but for the places that it has in hand.
local function is_on_its_way(user)
  return moved_to(user) or call('HGET', prefix .. 'frozen:' .. user, 'why') == 'arrive'
end

local function count_user(at, user)
  add('in_hand', call('HLEN', prefix .. 'offers:' .. user))
  cards[at] = 0
  if is_on_its_way(user) then return end
  for _, lane in ipairs({ 'critical', 'normal' }) do
    add(lane, call('ZCARD', place_key(lane, user)))
    add('started', call('XLEN', stream_key(lane, user)))
  end
  add('scheduled', call('ZCARD', place_key('scheduled', user)))
  add('deferred', call('SCARD', place_key('deferred', user)))
  add('announcements', call('LLEN', prefix .. 'announcements:' .. user))
  cards[at] = call('ZCARD', place_key('held', user))
end

-- What is held counts in its lane.
local function count_held(span)
  --@fields HeldSpan span
  for _, id in ipairs(call('ZRANGE', place_key('held', user), first, last)) do
    local lane = call('HGET', task_key(user, id), 'lane')
    if sums[lane] then add(lane, 1) end
  end
end

local function count_all()
  for at, user in ipairs(users) do count_user(at, user) end
  for _, span in ipairs(held) do count_held(span) end
  local told, counted = call('HMGET', state_key, unpack(FIELDS)), {}
  for at, field in ipairs(FIELDS) do told[at], counted[at] = told[at] or '', sums[field] end
  local newcomers = call('ZRANGEBYSCORE', users_key, since_ms, '+inf', 'LIMIT', 0, 100)
  return { version_of_state(), told, counted, newcomers, cards }
end

local ok, reply = pcall(count_all)
return ok and reply

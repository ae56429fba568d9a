#!lua flags=no-writes
-- What tells whether a queue is well, beside its totals.
-- KEYS[1]  state
-- Returns  {dead letters, for how many of those that are linked (1,000 at most) others wait, ms at which the first
--          scheduled task is due or '', ms at which the first schedule fires or '', users that became ready last, users
--          that are left alone for a damaged key, or as their import is not complete}
-- Cost     O(log letters + users + letters that are linked, at most 1,000)
--@include base
--@include frozen
--@arguments
-- Ten of those that depend on it are asked.
local function is_waited_for(user, id)
  for _, dependent in ipairs(call('SRANDMEMBER', feeds_key(user, id), 10)) do
    if call('SISMEMBER', needs_key(user, dependent), id) == 1 then return true end
  end
  return false
end

-- Of each user as many.
local function count_blocking()
  local users, blocking, left = call('ZRANGE', prefix .. 'lapsing', 0, 999), 0, 1000
  for at, user in ipairs(users) do
    local ids = call('ZRANGE', place_key('lapsing', user), 0, math.floor(left / (#users - at + 1)) - 1)
    left = left - #ids
    for _, id in ipairs(ids) do
      if is_waited_for(user, id) then blocking = blocking + 1 end
    end
  end
  return blocking
end

-- An export passes by itself, and so does a move.
local function left_alone()
  local users = {}
  for _, user in ipairs(call('ZRANGE', prefix .. 'damaged', 0, most - 1)) do
    local why = call('HGET', frozen_key(user), 'why')
    if not why or why == 'import' then users[#users + 1] = user end
  end
  return users
end

local function first(key) return call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or '' end
return {
  call('ZCOUNT', prefix .. 'dead', string.format('%d', now - dead_letter_ttl_ms), '+inf'),
  count_blocking(),
  first(due_key),
  first(prefix .. 'schedules'),
  call('ZREVRANGE', users_key, 0, most - 1),
  left_alone(),
}

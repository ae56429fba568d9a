#!lua flags=no-writes
-- A page of the tasks of a user that wait in one place.
-- KEYS[1]  state
-- Returns  {now, then per task: id, body or '', its score: a place in the lane, ms at which it is due, or, of a deferred
--          one, when it came}
-- Cost     O(log n + most), O(n) where they are deferred
--@include base
--@include moved
--@arguments
refuse_moved(user)

local function page()
  local key = place_key(place, user)
  if place ~= 'deferred' then return call('ZRANGE', key, offset, offset + most - 1, 'WITHSCORES') end
  local found = {}
  for _, id in ipairs(call('SORT_RO', key, 'ALPHA', 'LIMIT', offset, most)) do
    found[#found + 1] = id
    found[#found + 1] = call('HGET', task_key(user, id), 'came') or '0'
  end
  return found
end

local found, reply = page(), { now }
for at = 1, #found, 2 do
  reply[#reply + 1] = found[at]
  reply[#reply + 1] = call('GET', body_key(user, found[at])) or ''
  reply[#reply + 1] = string.format('%d', found[at + 1]) -- times have fractions
end
return reply

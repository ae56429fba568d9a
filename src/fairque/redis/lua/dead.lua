#!lua flags=no-writes
-- Dead letters, the oldest first: of one user, or of all.
-- KEYS[1]  state
-- Returns  per letter: user, id, ms, result record or '', message body
-- Cost     O(log² letters + returned)
--@include base
--@arguments
local key = user == '' and prefix .. 'dead' or place_key('dead', user)
local letters = {}

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

-- Byte by byte, as Redis sorts; `<` goes by the locale of the server.
local function is_behind(member, other)
  for at = 1, math.min(#member, #other) do
    local one, two = string.byte(member, at), string.byte(other, at)
    if one ~= two then return one > two end
  end
  return #member > #other
end

-- The rank of the first letter behind `after`, which may be gone by now. Many share a millisecond: those that one script
-- settled.
local function first_rank()
  local score = string.format('%d', after_ms)
  local low, high = call('ZCOUNT', key, '-inf', '(' .. score), call('ZCOUNT', key, '-inf', score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_behind(call('ZRANGE', key, middle, middle)[1], after) then high = middle else low = middle + 1 end
  end
  return math.max(low, call('ZCOUNT', key, '-inf', '(' .. string.format('%d', now - dead_letter_ttl_ms)))
end

local rank = first_rank()
while #letters < most do
  local page = call('ZRANGE', key, rank, rank + most - 1, 'WITHSCORES')
  if #page == 0 then break end
  for at = 1, #page, 2 do
    if #letters < most then note(page[at], page[at + 1]) end
  end
  rank = rank + most
end
return letters

#!lua flags=no-writes
-- Dead letters, the oldest first: of one user, or of all.
-- KEYS[1]  state
-- ARGV     user or '', largest number, after: ms, after: member (the letters behind this one; '0' and '' from the start),
--          TTL of dead letters in ms
-- Returns  per letter: user, id, ms, result record or '', message body
-- Cost     O(log² letters + returned)
--@include base
local user, limit, after_ms, after, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local key = user == '' and prefix .. 'dead' or prefix .. 'dead:' .. user
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
  local low, high = call('ZCOUNT', key, '-inf', '(' .. after_ms), call('ZCOUNT', key, '-inf', after_ms)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_behind(call('ZRANGE', key, middle, middle)[1], after) then high = middle else low = middle + 1 end
  end
  return math.max(low, call('ZCOUNT', key, '-inf', '(' .. string.format('%d', now - ttl)))
end

local rank = first_rank()
while #letters < limit do
  local page = call('ZRANGE', key, rank, rank + limit - 1, 'WITHSCORES')
  if #page == 0 then break end
  for at = 1, #page, 2 do
    if #letters < limit then note(page[at], page[at + 1]) end
  end
  rank = rank + limit
end
return letters

-- Places in a sorted set of members by ms, many of which share one: those that one script wrote.
--@include base

-- Byte by byte, as Redis sorts; `<` goes by the locale of the server.
local function is_behind(member, other)
  for at = 1, math.min(#member, #other) do
    local one, two = string.byte(member, at), string.byte(other, at)
    if one ~= two then return one > two end
  end
  return #member > #other
end

-- How many stand before this place, at which there may be nobody (any more). counts_own: who stands there counts as well.
local function rank_at(key, ms, member, counts_own)
  local score = string.format('%d', ms)
  local low, high = call('ZCOUNT', key, '-inf', '(' .. score), call('ZCOUNT', key, '-inf', score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local there = call('ZRANGE', key, middle, middle)[1]
    if is_behind(there, member) or (there == member and not counts_own) then high = middle else low = middle + 1 end
  end
  return low
end

#!lua flags=no-writes
-- Dead letters by the kind of their error: of one user, or of all.
-- KEYS[1]  state
-- Returns  {now, letters in all, per kind that has a list: kind, letters, ms of the oldest and of the latest}
-- Cost     O(kinds log letters), which is bounded
--@include base
--@include moved
--@include dead_kinds
--@arguments
if user ~= '' then refuse_moved(user) end
local whose = user == '' and '*' or user
local first = string.format('%d', now - dead_letter_ttl_ms)
local found = { now, call('ZCOUNT', user == '' and prefix .. 'dead' or place_key('dead', user), first, '+inf') }

local function note(kind)
  local letters = letters_key(whose, kind)
  local many = call('ZCOUNT', letters, first, '+inf')
  if many == 0 then return end
  local oldest = call('ZRANGEBYSCORE', letters, first, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  for _, value in ipairs({ kind, many, oldest, call('ZRANGE', letters, -1, -1, 'WITHSCORES')[2] }) do
    found[#found + 1] = value
  end
end

for _, kind in ipairs(redis.pcall('ZRANGE', kinds_key(whose), 0, -1)) do try_alone(note, kind) end
return found

#!lua flags=no-writes
-- Dead letters, the oldest first: of one user, or of all; of one kind of error, or of any.
-- KEYS[1]  state
-- Returns  per letter: user, id, ms, result record or '', name
-- Cost     O(log² letters + returned)
--@include base
--@include moved
--@include ranks
--@include message
--@include dead_kinds
--@arguments
if user ~= '' then refuse_moved(user) end
local key = user == '' and prefix .. 'dead' or place_key('dead', user)
if kind ~= '' then key = letters_key(user == '' and '*' or user, kind) end
local letters = {}

local function note(of, id, ms)
  local head = call('GETRANGE', body_key(of, id), 0, LONGEST_HEAD)
  if head == '' then return end -- expired with its TTL; the index is pruned by the next failure
  letters[#letters + 1] = { of, id, ms, call('GET', result_key(of, id)) or '', name_in(head) }
end

local function note_member(member, ms)
  if user ~= '' then return note(user, member, ms) end
  local colon = string.find(member, ':', 1, true)
  try_alone(note, string.sub(member, 1, colon - 1), string.sub(member, colon + 1), ms)
end

-- The rank of the first letter behind `after`, which may be gone by now.
local function first_rank()
  local behind = after == '' and 0 or rank_at(key, after_ms, after, true)
  return math.max(behind, call('ZCOUNT', key, '-inf', '(' .. string.format('%d', now - dead_letter_ttl_ms)))
end

local rank = first_rank()
while #letters < most do
  local page = call('ZRANGE', key, rank, rank + most - 1, 'WITHSCORES')
  if #page == 0 then break end
  for at = 1, #page, 2 do
    if #letters < most then note_member(page[at], page[at + 1]) end
  end
  rank = rank + most
end
return letters

#!lua flags=no-writes
-- Users who have something to serve or something running.
-- KEYS[1]  state
-- Returns  users: those with the lowest and the highest tags, half and half, then those with running tasks
-- Cost     O(most + log users), O(most²) where groups hold them
--@include base
--@arguments
local half = math.ceil(most / 2)
local found, seen = {}, {}

local function note(user)
  if #found < most and not seen[user] then
    found[#found + 1] = user
    seen[user] = true
  end
end

local function both_ends(key)
  local members = call('ZRANGE', key, 0, half - 1)
  for _, member in ipairs(call('ZREVRANGE', key, 0, half - 1)) do members[#members + 1] = member end
  return members
end

-- '@' begins no user, its own is encoded: such a member stands for the users of a group, four deep at most.
local function note_line(key)
  for _, member in ipairs(both_ends(key)) do
    if string.sub(member, 1, 1) ~= '@' then
      note(member)
    elseif #found < most then
      note_line(prefix .. 'ready:' .. string.sub(member, 2))
    end
  end
end

note_line(ready_key)
for _, member in ipairs(call('ZRANGE', leases_key, 0, most - 1)) do
  note(string.sub(member, string.find(member, ':', 1, true) + 1))
end
return found

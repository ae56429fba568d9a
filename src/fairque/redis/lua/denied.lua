#!lua flags=no-writes
-- Which commands this user of Redis may not run: asked before it begins, and not told by the first call that fails.
-- KEYS[1]  state
-- Returns  the positions of those that are not permitted with these words, or that the server does not know
-- Cost     O(commands)
--@include base
--@arguments
local found = {}
for at, words in ipairs(commands) do
  local is_known, is_permitted = pcall(redis.acl_check_cmd, unpack(words))
  if not (is_known and is_permitted) then found[#found + 1] = at end
end
return found

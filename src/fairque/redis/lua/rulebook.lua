#!lua flags=no-writes
-- All that governs all users: the policy of everybody, limits that are not of one user, and pauses of tasks.
-- KEYS[1]  state
-- Returns  {its revision, the policy as a msgpack map or '', the revision at which places were forfeited last, per record {its name, what is set by hand, what code declares,
--          1 where it is paused; each '' where it is not}}; or {its revision}, where that is not newer
-- Cost     O(limits)
--@include base
--@include revision
--@arguments
if known_revision() <= newer_than then return { known_revision() } end
local found = { known_revision(), call('GET', prefix .. 'policy:*') or '',
  tonumber(call('HGET', state_key, 'forfeited_at') or 0) }
local function add(from, to)
  for _, record in ipairs(call('ZRANGEBYLEX', prefix .. 'limit-keys', from, to)) do
    local said = call('HMGET', prefix .. 'limit:' .. record, 'hand', 'code', 'paused')
    found[#found + 1] = { record, said[1] or '', said[2] or '', said[3] or '' }
  end
end
add('[:', '(;') -- of no user: that would be in front
add('[=', '(>')
return found

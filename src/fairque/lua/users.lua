#!lua flags=no-writes
-- What is known of users, most recently active first, or of the ones named.
-- KEYS[1]  state
-- ARGV     offset, limit, users ... (when named, offset and limit are not used)
-- Returns  per user: {user, critical, normal, started critical, started normal, scheduled, deferred, dead letters, ready tag or '',
--          seen or 0, user fields, policy fields}
-- Cost     O(users returned)
--@include base
local names
if #ARGV > 2 then
  names = { unpack(ARGV, 3) }
else
  names = call('ZREVRANGE', users_key, ARGV[1], ARGV[1] + ARGV[2] - 1)
end
local found = {}
for at, user in ipairs(names) do
  found[at] = {
    user,
    call('ZCARD', lane_key('critical', user)),
    call('ZCARD', lane_key('normal', user)),
    call('XLEN', stream_key('critical', user)),
    call('XLEN', stream_key('normal', user)),
    call('ZCARD', prefix .. 'scheduled:' .. user),
    call('SCARD', prefix .. 'deferred:' .. user),
    call('ZCARD', prefix .. 'dead:' .. user),
    call('ZSCORE', ready_key, user) or '',
    call('ZSCORE', users_key, user) or '0',
    call('HGETALL', prefix .. 'user:' .. user),
    call('HGETALL', prefix .. 'policy:' .. user),
  }
end
return found

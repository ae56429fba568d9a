#!lua flags=no-writes
-- What tells whether a queue is well, beside its totals.
-- KEYS[1]  state
-- Returns  {dead letters, ms at which the first scheduled task is due or '', ms at which the first schedule fires or '',
--          users that became ready last, users that are left alone for a damaged key}
-- Cost     O(log letters + users)
--@include base
--@arguments
local function first(key) return call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or '' end
return {
  call('ZCOUNT', prefix .. 'dead', string.format('%d', now - dead_letter_ttl_ms), '+inf'),
  first(due_key),
  first(prefix .. 'schedules'),
  call('ZREVRANGE', users_key, 0, most - 1),
  call('ZRANGE', prefix .. 'damaged', 0, most - 1),
}

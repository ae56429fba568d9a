#!lua flags=no-writes
-- What tells whether a queue is well, beside its totals.
-- KEYS[1]  state
-- Returns  {dead letters, ms at which the first scheduled task is due or '', ms at which the first schedule fires or ''}
-- Cost     O(log letters)
--@include base
--@arguments
local function first(key) return call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or '' end
return {
  call('ZCOUNT', prefix .. 'dead', string.format('%d', now - dead_letter_ttl_ms), '+inf'),
  first(due_key),
  first(prefix .. 'schedules'),
}

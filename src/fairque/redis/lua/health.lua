#!lua flags=no-writes
-- What tells whether a queue is well, beside its totals.
-- KEYS[1]  state
-- ARGV     TTL of dead letters in ms
-- Returns  {dead letters, ms at which the first scheduled task is due or '', ms at which the first schedule fires or ''}
-- Cost     O(log letters)
--@include base
local function first(key) return call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or '' end
return {
  call('ZCOUNT', prefix .. 'dead', string.format('%d', now - tonumber(ARGV[1])), '+inf'),
  first(due_key),
  first(prefix .. 'schedules'),
}

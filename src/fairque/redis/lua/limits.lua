#!lua flags=allow-oom
-- Set the limits of task names, over all users.
-- KEYS[1]  state
-- ARGV     declared (1: by the code of a worker, which takes back only what code declared), then per name: name, most
--          that run at once or '', us between two starts or '', burst
-- Returns  1
-- Cost     O(names)
--@include base
--@include wake
local declared = ARGV[1] == '1'
for at = 2, #ARGV, 4 do
  local key = prefix .. 'limit:' .. ARGV[at]
  local before = call('EXISTS', key)
  if ARGV[at + 1] ~= '' or ARGV[at + 2] ~= '' then
    call('HDEL', key, 'max', 'rate_us', 'burst', 'declared')
    if ARGV[at + 1] ~= '' then call('HSET', key, 'max', ARGV[at + 1]) end
    if ARGV[at + 2] ~= '' then call('HSET', key, 'rate_us', ARGV[at + 2], 'burst', ARGV[at + 3]) end
    if declared then call('HSET', key, 'declared', 1) end
  elseif not declared or call('HEXISTS', key, 'declared') == 1 then
    call('DEL', key)
  end
  local exists = call('EXISTS', key)
  if exists == 1 then
    call('ZADD', prefix .. 'limit-names', 0, ARGV[at])
  else
    call('ZREM', prefix .. 'limit-names', ARGV[at])
  end
  count('limits', exists - before)
  if call('ZADD', prefix .. 'held', 'XX', 'CH', now, ARGV[at]) == 1 then wake_from(prefix .. 'waiting', 1) end
end
save_counts()
-- What is held still has to come back.
if call('HGET', state_key, 'limits') == '0' and call('EXISTS', prefix .. 'held') == 0 then
  call('HDEL', state_key, 'limits')
end
return 1

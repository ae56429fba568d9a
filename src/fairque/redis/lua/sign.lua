#!lua flags=allow-oom
-- An idle worker gives a sign of life, and tells what of it has changed.
-- KEYS[1]  state
-- Returns  {1 when its process is to look at schedules, as nobody else does, 1 when it is to renew instead: its entry is
--          not there, or is that of a worker with deliveries, or another worker is to be dropped}
-- Cost     O(log workers)
--@include base
--@include schedule_keepers
--@arguments
local entry, workers = prefix .. 'worker:' .. worker, prefix .. 'workers'
local known = call('HMGET', entry, 'idle', 'serves')
if known[1] ~= '1' or not call('ZSCORE', workers, worker) then return { 0, 1 } end
if call('ZCOUNT', workers, '-inf', now - ttl_ms) > 0 then return { 0, 1 } end
local flat = {}
for field, value in pairs(fields) do
  flat[#flat + 1], flat[#flat + 2] = field, value
end
call('HSET', entry, 'seen', now_text, unpack(flat))
call('PEXPIRE', entry, ttl_ms)
call('ZADD', workers, now_text, worker)
for name in string.gmatch(known[2] or '', '%S+') do call('ZADD', prefix .. 'assignments', 'XX', now_text, name) end
return { scheduler ~= '' and has_part_for(scheduler) and 1 or 0, 0 }

#!lua flags=allow-oom
-- A worker was told of work, or kept a moment, and has no time for it: another one looks instead.
-- KEYS[1]  state
-- Returns  1
-- Cost     O(assignments)
--@include base
--@include state
--@include fair
--@include wake
--@include keeper
--@arguments
call('SREM', prefix .. 'waiting', worker)
for _, name in ipairs(groups) do
  if name ~= '*' then call('SREM', prefix .. 'waiting:' .. name, worker) end
end
new_keeping(worker).hand_on()
local untold = call('EXISTS', ready_key)
for _, name in ipairs(groups) do
  if untold > 0 then untold = wake_from(name == '*' and prefix .. 'waiting' or prefix .. 'waiting:' .. name, 1, worker) end
end
save_state()
return 1

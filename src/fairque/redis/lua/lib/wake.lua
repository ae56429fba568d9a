-- Tell at most `tasks` idle workers that `user` has work, or all that serve everyone, and not the one that calls. A worker
-- whose message nobody received is gone: the next is told.
--@include base
--@include state

--@once
local give_later -- a function in scripts that answer claims which rest: lib/resting.lua

local function reaches(worker) return call('SPUBLISH', prefix .. 'wake:' .. worker, '') > 0 end

local function tell_all_workers()
  for _, worker in ipairs(call('ZRANGE', prefix .. 'workers', 0, -1)) do reaches(worker) end
end

local function wake_from(set, tasks, except)
  while tasks > 0 do
    local worker = call('SPOP', set)
    if not worker then break end
    if worker ~= except and (give_later and give_later(worker) or reaches(worker)) then tasks = tasks - 1 end
  end
  return tasks
end

local function wake(user, tasks, except)
  -- Of none, where that key is of another type.
  for _, name in ipairs(has_assigned and user and redis.pcall('SMEMBERS', prefix .. 'assignments:' .. user) or {}) do
    if tasks > 0 then tasks = wake_from(prefix .. 'waiting:' .. name, tasks, except) end
  end
  if tasks > 0 then wake_from(prefix .. 'waiting', tasks, except) end
end

-- Tell at most `tasks` idle workers that `user` has work. A worker whose message nobody received is gone: the next is told.
--@include base
--@include state

local function wake_from(set, tasks)
  while tasks > 0 do
    local worker = call('SPOP', set)
    if not worker then break end
    if call('PUBLISH', prefix .. 'wake:' .. worker, '') > 0 then tasks = tasks - 1 end
  end
  return tasks
end

local function wake(user, tasks)
  if has_limited then tasks = wake_from(prefix .. 'waiting:' .. user, tasks) end
  if tasks > 0 then wake_from(prefix .. 'waiting', tasks) end
end

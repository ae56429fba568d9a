-- What goes when a task goes.
--@include base
--@include bytes

-- All that is kept of a task itself, apart from its result and from what waits for what.
local function keys_of_task(user, id) return task_key(user, id), body_key(user, id), errors_key(user, id) end

-- It lives, so it kills nobody (lib/taking_over.lua).
local function clear_its_name(key) call('HDEL', key, 'lost', 'received', 'tried', 'deaths', 'alone') end

-- Nothing is left of a task that waits nowhere but its links.
local function erase_task(user, id)
  if bytes then
    bytes.lift(user, id)
    bytes.change_ends(user, id, -1)
  end
  call('DEL', result_key(user, id), needs_key(user, id), ends_key(user, id), keys_of_task(user, id))
  call('UNLINK', chunks_key(user, id), children_key(user, id)) -- they may be large
end

-- The task has ended: what it yielded, if it did, goes with its result.
local function expire_chunks(user, id, ttl)
  local key = chunks_key(user, id)
  if bytes then bytes.lift_chunks(user, id) end
  call('PEXPIRE', key, ttl)
  if bytes then bytes.lay_chunks(user, id) end
end

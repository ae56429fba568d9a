#!lua flags=no-writes
-- Where tasks stand, without their bodies and errors. A damaged key, and a user who lives elsewhere, cost their own tasks the answer.
-- KEYS[1]  state
-- Returns  per task, until the results are beyond 1 MiB together: {result record or '', state of a task that has not
--          ended, or nil when it is not known}, or {error}
-- Cost     O(size of the results)
--@include base
--@include moved
--@arguments
local MOST_BYTES = 1048576
local has_moved = call('EXISTS', moved_key) == 1

local function look(user, id)
  if has_moved then refuse_moved(user) end
  local record = call('GET', result_key(user, id))
  if record then return { record, false } end
  if call('EXISTS', body_key(user, id)) == 0 then return { '', false } end
  return { '', call('HGET', task_key(user, id), 'state') or 'queued' }
end

local seen, bytes = {}, 0
for at, task in ipairs(tasks) do
  --@fields Peeked task
  local is_whole, sight = pcall(look, user, id)
  seen[at] = is_whole and sight or { text_of(sight) }
  bytes = bytes + #seen[at][1]
  if bytes > MOST_BYTES then break end
end
return seen

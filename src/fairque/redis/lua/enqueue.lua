#!lua
-- Add tasks, all or nothing.
-- KEYS[1]  state
-- Returns  per task, in order: 1 created (also by an earlier try of the same call), 0 a task with this id lives;
--          or, when nothing was written: {'full', user, ms until there may be room} | {'linked'}: old tasks must be
--          dropped, which the script with dependencies does | {'heavy', user, bytes used, limit, bytes asked for, ms}
-- Cost     O(tasks log backlog + users log users)
--@include base
--@include state
--@include alive
--@include fair
--@include resting
--@include add
--@arguments
local step_us = priority_step_ms * 1000
if has_damaged or has_moved then refuse_all_absent(tasks) end
look_for_known(tasks)
local refused = governed and over_quota(tasks)
if refused then return refused end
local created, bodies = {}, {}

for at, task in ipairs(tasks) do
  --@fields AddedTask task: user id priority when body
  local key = body_key(user, id)
  local found = standing(user, id, body, key)
  created[at] = found == 'living' and 0 or 1
  if found == 'new' then
    make_room()
    take_links_over(user, id)
    bodies[#bodies + 1] = key
    bodies[#bodies + 1] = body
    if bytes then bytes.change(user, 'body:' .. id, #body) end
    local due = due_at(when)
    if due > now then
      put_offs[#put_offs + 1] = { user, id, priority, due }
      gather(user, id, body, when)
    else
      put_in_lane(user, id, priority, body, step_us)
    end
  end
end
local is_done, failure = pcall(write_places)
if is_done and #bodies > 0 then is_done, failure = pcall(call, 'MSET', unpack(bodies)) end
if is_done and gathered[1] then is_done, failure = pcall(join_groups, step_us) end
if not is_done then
  wake_resting()
  damage().take_back_all(tasks, bodies, failure)
end
answer_resting()
save_state()
return created

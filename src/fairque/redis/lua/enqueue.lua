#!lua
-- Add tasks, all or nothing.
-- KEYS[1]  state
-- ARGV     priority step in ms, then per user: user, number of tasks, and per task: id, priority, when, body
--          when: '' now | '+ms' from now | 'ms' since the epoch
-- Returns  per task, in order: 1 created (also by an earlier try of the same call), 0 a task with this id lives;
--          or, when nothing was written: {'full', user, ms until there may be room} | {'linked'}: old tasks must be
--          dropped, which the script with dependencies does
-- Cost     O(tasks log backlog + users log users)
--@include base
--@include fair
--@include wake
--@include place
local step_us = tonumber(ARGV[1]) * 1000
local FIRST, FIELDS = 2, 4
--@include add
local refused = governed and over_quota()
if refused then return refused end
local created, bodies, i = {}, {}, FIRST

while i <= #ARGV do
  local user, n = ARGV[i], tonumber(ARGV[i + 1])
  local lanes = { critical = {}, normal = {} }
  local placed, first_cost, sooner = 0, nil, false
  for at = i + 2, i + 1 + n * FIELDS, FIELDS do
    local id, priority, when, body = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
    local key = body_key(user, id)
    local found = standing(user, id, body, key)
    created[#created + 1] = found == 'living' and 0 or 1
    if found == 'new' then
      make_room()
      take_waiters_over(user, id)
      bodies[#bodies + 1] = key
      bodies[#bodies + 1] = body
      local due = due_at(when)
      if due > now then
        call('HSET', task_key(user, id), 'state', 'scheduled', 'priority', priority, 'enqueued', now)
        sooner = sooner or is_next_due(due)
        schedule(user, id, due)
      else
        local lane, score = score_of(priority, step_us)
        local scored = lanes[lane]
        scored[#scored + 1] = score
        scored[#scored + 1] = id
        placed = placed + 1
        first_cost = first_cost or cost_of(body)
      end
    end
  end
  for lane, scored in pairs(lanes) do
    if #scored > 0 then
      call('ZADD', lane_key(lane, user), unpack(scored))
      count(lane, #scored / 2)
    end
  end
  if placed > 0 then
    if admit(user, first_cost) then wake(user, placed) end
  elseif sooner then
    wake(user, 1)
  end
  i = i + 2 + n * FIELDS
end
if #bodies > 0 then call('MSET', unpack(bodies)) end
save_state()
return created

#!lua
-- Add tasks, all or nothing, some of which wait for others. (Those that wait for nothing have a script with less in it.)
-- KEYS[1]  state
-- ARGV     priority step in ms, TTL of canceled records in ms, then per user: user, number of tasks, and per task: id,
--          priority, when, body, dependencies
--          when: '' now | '+ms' from now | 'ms' since the epoch
--          dependencies: '' or msgpack [policy, allow unknown, ids], policy: wait | cancel | run
-- Returns  per task, in order: 1 created (also by an earlier try of the same call), 0 a task with this id lives;
--          or, when nothing was written: {'unknown', user, id, dependency} | {'cycle', user, ids ...} | {'deep', user, id} |
--          {'full', user, ms until there may be room}
-- Cost     O(tasks log backlog + users log users + dependencies)
--@include base
--@include fair
--@include wake
--@include place
--@include canceled
--@include depend
--@include drop
local step_us, canceled_ttl = tonumber(ARGV[1]) * 1000, tonumber(ARGV[2])
local FIRST, FIELDS = 3, 5
--@include add

-- First look at everything, write afterwards: `new` holds the tasks of this call by user and id.
local tasks, new, with_needs = {}, {}, false

local function read_tasks()
  tasks, new = {}, {}
  local i = FIRST
  while i <= #ARGV do
    local user, n = ARGV[i], tonumber(ARGV[i + 1])
    new[user] = new[user] or {}
    for at = i + 2, i + 1 + n * FIELDS, FIELDS do
      local task = { user = user, id = ARGV[at], priority = tonumber(ARGV[at + 1]), when = ARGV[at + 2],
        body = ARGV[at + 3], key = body_key(user, ARGV[at]) }
      task.standing = standing(user, task.id, task.body, task.key)
      if task.standing == 'new' then
        new[user][task.id] = task
        if ARGV[at + 4] ~= '' then
          local needs = cmsgpack.unpack(ARGV[at + 4])
          task.policy, task.allow_unknown, task.needs = needs[1], needs[2], needs[3]
          with_needs = true
        end
      end
      tasks[#tasks + 1] = task
    end
    i = i + 2 + n * FIELDS
  end
end

-- 'finished', 'failed', 'canceled', 'living', or nil when nothing is known of it.
local function standing_of_dependency(user, id)
  if new[user][id] then return new[user][id].canceled and 'canceled' or 'living' end
  local letter = call('GETRANGE', result_key(user, id), 9, 9)
  if letter == 'F' then return 'finished' end
  if letter == 'X' then return 'failed' end
  if letter == 'C' then return 'canceled' end
  if call('EXISTS', body_key(user, id)) == 0 then return nil end
  return call('HGET', task_key(user, id), 'state') == 'failed' and 'failed' or 'living'
end

local function find_unknown()
  for _, task in ipairs(tasks) do
    if task.needs and not task.allow_unknown then
      for _, dependency in ipairs(task.needs) do
        if not standing_of_dependency(task.user, dependency) then
          return { 'unknown', task.user, task.id, dependency }
        end
      end
    end
  end
end

-- What waits in Redis matters only when it waits for a task of this call.
local function somebody_waits()
  if fresh then return false end
  for _, task in ipairs(tasks) do
    if task.standing == 'new' and has_waiters(task.user, task.id) then return true end
  end
  return false
end

local CYCLE_STEPS = 20000
local function needs_of(user, id, look_outside)
  local task = new[user][id]
  if task then return task.needs or {} end
  return look_outside and call('SMEMBERS', needs_key(user, id)) or {}
end

-- Depth first without recursion; a node on the path that is met again closes a cycle.
local function find_cycle_from(user, start, done, look_outside, steps)
  local path, on_path, todo = {}, {}, { { start, 1 } }
  local needs = {}
  while #todo > 0 do
    local top = todo[#todo]
    local id, position = top[1], top[2]
    if position == 1 then
      on_path[id] = true
      path[#path + 1] = id
      needs[id] = needs_of(user, id, look_outside)
    end
    local dependency = needs[id][position]
    top[2] = position + 1
    steps.left = steps.left - 1
    if steps.left < 0 then return { 'deep', user, start } end
    if not dependency then
      todo[#todo], path[#path], on_path[id], done[id] = nil, nil, nil, true
    elseif on_path[dependency] then
      local first = #path
      while path[first] ~= dependency do first = first - 1 end
      path[#path + 1] = dependency
      return { 'cycle', user, unpack(path, math.max(first, #path - 100)) }
    elseif not done[dependency] then
      todo[#todo + 1] = { dependency, 1 }
    end
  end
end

local function find_cycle()
  local look_outside, done, steps = somebody_waits(), {}, { left = CYCLE_STEPS }
  for _, task in ipairs(tasks) do
    done[task.user] = done[task.user] or {}
    if task.needs and not done[task.user][task.id] then
      local found = find_cycle_from(task.user, task.id, done[task.user], look_outside, steps)
      if found then return found end
    end
  end
end

-- What it waits for, or nil; second: the dependency that ends it at once.
local function unfinished(task)
  local waits = nil
  for _, dependency in ipairs(task.needs or {}) do
    local found = standing_of_dependency(task.user, dependency)
    local missed = found == 'failed' or found == 'canceled'
    if missed and task.policy == 'cancel' then return nil, dependency .. ' ' .. found end
    if found ~= 'finished' and not (missed and task.policy == 'run') then
      waits = waits or {}
      waits[#waits + 1] = dependency
    end
  end
  return waits
end

local bodies, lanes, sooner = {}, {}, {}

local function defer(task, waits, due)
  local user, id = task.user, task.id
  call('HSET', task_key(user, id), 'state', 'deferred', 'priority', task.priority, 'enqueued', now, 'came',
    next_arrival(), 'on_failure', task.policy, 'due', due)
  for _, dependency in ipairs(waits) do depend().wait_for(user, id, dependency) end
  call('SADD', prefix .. 'deferred:' .. user, id)
  call('ZADD', users_key, now, user)
  count('deferred', 1)
end

local function put_in_lane(task)
  local lane, score = score_of(task.priority, step_us)
  local of_user = lanes[task.user] or { cost = cost_of(task.body), scored = { critical = {}, normal = {} } }
  lanes[task.user] = of_user
  local scored = of_user.scored[lane]
  scored[#scored + 1] = score
  scored[#scored + 1] = task.id
end

local function add(task)
  bodies[#bodies + 1] = task.key
  bodies[#bodies + 1] = task.body
  local due = due_at(task.when)
  local waits, ended_by = nil, nil
  if task.needs then waits, ended_by = unfinished(task) end
  if ended_by then
    task.canceled = 'dependency ' .. ended_by
  elseif waits then
    defer(task, waits, due)
  elseif due > now then
    call('HSET', task_key(task.user, task.id), 'state', 'scheduled', 'priority', task.priority, 'enqueued', now)
    sooner[task.user] = sooner[task.user] or is_next_due(due)
    schedule(task.user, task.id, due)
  else
    put_in_lane(task)
  end
end

local function fill_lanes(user, of_user)
  local placed = 0
  for lane, scored in pairs(of_user.scored) do
    if #scored > 0 then
      call('ZADD', lane_key(lane, user), unpack(scored))
      count(lane, #scored / 2)
      placed = placed + #scored / 2
    end
  end
  if admit(user, of_user.cost) then wake(user, placed) end
  sooner[user] = nil
end

local has_dropped = false
-- Whoever refuses does so before anything is dropped.
local function make_quota()
  local over = over_quota()
  while over and over[1] == 'linked' do
    drop_oldest(over[2], over[3], canceled_ttl)
    has_dropped = true
    over = over_quota()
  end
  return over
end

read_tasks()
if with_needs then
  local refused = find_unknown() or find_cycle()
  if refused then return refused end
end
if governed then
  local full = make_quota()
  if full then return full end
  read_tasks()
end
make_room()
local created = {}
for at, task in ipairs(tasks) do
  created[at] = task.standing == 'living' and 0 or 1
  if task.standing == 'new' then
    take_waiters_over(task.user, task.id)
    add(task)
  end
end
for _, task in ipairs(tasks) do -- users in the order in which they came
  local of_user = lanes[task.user]
  if of_user then
    lanes[task.user] = nil
    fill_lanes(task.user, of_user)
  end
end
for user, is_sooner in pairs(sooner) do
  if is_sooner then wake(user, 1) end
end
if #bodies > 0 then call('MSET', unpack(bodies)) end
if with_needs or has_dropped then
  for _, task in ipairs(tasks) do
    if task.canceled then end_canceled(task.user, task.id, task.canceled, canceled_ttl) end
  end
  pass_on_outcomes(step_us, canceled_ttl)
end
save_state()
return created

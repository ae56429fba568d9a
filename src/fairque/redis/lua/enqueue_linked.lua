#!lua
-- Add tasks, all or nothing, some of which wait for others or have rules. (The others have a script with less in it.)
-- KEYS[1]  state
-- Returns  per task, in order: 1 created (also by an earlier try of the same call), 0 a task with this id lives, or, of one
--          with a condition, {that, or 2: it replaced another, 3: it was dropped, the id of the one that lives};
--          or, when nothing was written: {'unknown', user, id, dependency} | {'cycle', user, ids ...} | {'deep', user, id} |
--          {'exists', user, id} |
--          {'batch', user, batch}: it takes no more | {'orphan', user, id, parent}: that does not run |
--          {'full', user, ms until there may be room} | {'heavy', user, bytes used, limit, bytes asked for, ms}
-- Cost     O(tasks log backlog + users log users + dependencies)
--@include base
--@include state
--@include alive
--@include fair
--@include canceled
--@include depend
--@include drop
--@include add
--@include rules
--@include conditions
--@inside
--@arguments
local step_us = priority_step_ms * 1000

-- What is put in at the end of those tasks that say so, by position: packed, as lib/ends.lua keeps it.
local packed_ends, batches_of, parents, ends_sizes = {}, {}, {}, {}
local function read_ends()
  for _, with_end in ipairs(with_ends) do
    --@fields TaskWithEnd with_end: at callbacks batch adder parent with_parent
    local task = tasks[at]
    --@fields AddedTask task: user id
    if parent ~= '' then
      parents[at] = { id = parent, cancels = with_parent }
      if call('SISMEMBER', children_key(user, parent), id) == 1 then put_in_before[body_key(user, id)] = true end
    end
    if callbacks[1] or batch ~= '' then
      packed_ends[at] = endings().pack(callbacks, batch)
      batches_of[at] = batch ~= '' and { id = batch, adder = adder } or nil
      ends_sizes[body_key(user, id)] = #packed_ends[at]
    end
  end
end

-- First look at everything, write afterwards: `new` holds the tasks of this call by user and id.
local all, new, with_needs, refused = {}, {}, false, nil

local function is_added(it) return it.standing == 'new' or it.standing == 'replaces' end

local pointing = {} -- by user and key: those of this call that are to be alone under one
local function judge_conditions(it, of_user)
  local why
  pointing[it.user] = pointing[it.user] or {}
  it.standing, why = conditions().judge(it, of_user, pointing[it.user])
  refused = refused or why
  if is_added(it) then decided[it.key] = it.standing end
end

local function read(task, at)
  --@fields AddedTask task
  local of_user = new[user] or {}
  new[user] = of_user
  local key = body_key(user, id)
  local it = { user = user, id = id, priority = priority, when = when, body = body, key = key, rules = rules,
    task = task, ends = packed_ends[at], batch = batches_of[at], parent = parents[at] }
  if rules and rules[2] ~= '' then -- it has a nonce
    judge_conditions(it, of_user)
  else
    it.standing = standing(user, id, body, key)
  end
  if is_added(it) then
    of_user[it.id] = it
    if needs then
      it.policy, it.allow_unknown, it.needs = needs[1], needs[2], needs[3]
      if it.policy == 'wait' and it.allow_unknown then it.policy = 'wait-on' end
      with_needs = true
    end
  end
  return it
end

local function read_tasks()
  new, decided, pointing = {}, {}, {}
  for at, task in ipairs(tasks) do all[at] = read(task, at) end
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

local function find_orphan()
  for _, task in ipairs(all) do
    if task.parent and is_added(task) and call('HGET', task_key(task.user, task.parent.id), 'state') ~= 'started' then
      return { 'orphan', task.user, task.id, task.parent.id }
    end
  end
end

local function find_full_batch()
  for _, task in ipairs(all) do
    local batch = is_added(task) and task.batch
    if batch then endings().batches().prove(task.user, batch.id) end
    if batch and not endings().batches().takes_more(task.user, batch.id, batch.adder) then
      return { 'batch', task.user, batch.id }
    end
  end
end

local function find_unknown()
  for _, task in ipairs(all) do
    if is_added(task) and task.needs and not task.allow_unknown then
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
  for _, task in ipairs(all) do
    if is_added(task) and has_waiters(task.user, task.id) then return true end
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

-- Whether each waits for nothing but tasks of this call that stand before it, as those of a pipeline do. Then nothing is
-- unknown, and there is no way back from any of them.
local function is_in_order()
  for at, task in ipairs(all) do
    task.at = at
    if task.needs then
      local of_user = new[task.user]
      for _, dependency in ipairs(task.needs) do
        local other = of_user[dependency]
        if not (other and other.at and other ~= task) then return false end
      end
    end
  end
  return true
end

local function find_cycle()
  local look_outside, done, steps = somebody_waits(), {}, { left = CYCLE_STEPS }
  for _, task in ipairs(all) do
    done[task.user] = done[task.user] or {}
    if task.needs and not done[task.user][task.id] then
      local found = find_cycle_from(task.user, task.id, done[task.user], look_outside, steps)
      if found then return found end
    end
  end
end

-- Who depends on what, to be written at the end of the call: with the task itself, where that is of this call.
local fed, feeding = {}, {}
local function note_use(task, dependency, stands)
  local other = new[task.user][dependency]
  if other and not other.canceled then
    local dependents = other.dependents or {}
    dependents[#dependents + 1], other.dependents = task.id, dependents
    return
  end
  local of_user = feeding[task.user]
  if not of_user then
    of_user = {}
    feeding[task.user] = of_user
  end
  local of = of_user[dependency]
  if of then
    of.dependents[#of.dependents + 1] = task.id
  else
    of = { user = task.user, id = dependency, stands = stands, dependents = { task.id } }
    fed[#fed + 1], of_user[dependency] = of, of
  end
end

local users_deferred, deferred = {}, {} -- ids by user, of those that wait

local function write_links()
  for _, user in ipairs(users_deferred) do
    add_all_to(place_key('deferred', user), deferred[user])
    call('ZADD', users_key, now_text, user)
    count('deferred', #deferred[user])
  end
  for _, task in ipairs(all) do
    if task.dependents then
      add_all_to(feeds_key(task.user, task.id), task.dependents)
      if not task.is_linked then call('HSETNX', task_key(task.user, task.id), 'linked', '1') end
    end
  end
  for _, of in ipairs(fed) do
    local added = new[of.user][of.id]
    if added and added.is_linked then
      add_all_to(feeds_key(of.user, of.id), of.dependents)
    else
      depend().feed(of.user, of.id, of.dependents, of.stands == 'finished')
    end
    if of.stands == 'failed' then
      local at = call('ZSCORE', place_key('dead', of.user), of.id)
      depend().lapse_at(of.user, of.id, (at or now) + dead_letter_ttl_ms)
    end
  end
end

-- Notes what it uses; returns what it waits for. Or second: the dependency that ends it at once.
local function depend_on_needs(task)
  local waits, finished, failed = {}, {}, {}
  for _, dependency in ipairs(task.needs) do
    local stands, does = standing_of_dependency(task.user, dependency), 'wait'
    if stands and stands ~= 'living' then does = depend().verdict(task.policy, stands) end
    if does == 'end' then return nil, { dependency, stands } end
    if does == 'wait' then waits[#waits + 1] = dependency end
    if stands == 'finished' then finished[#finished + 1] = dependency end
    if stands == 'failed' then failed[dependency] = stands end
  end
  local uses = uses_key(task.user, task.id)
  for _, dependency in ipairs(waits) do note_use(task, dependency, failed[dependency]) end
  add_all_to(uses, waits)
  task.is_linked = waits[1] or finished[1]
  if not finished[1] then return waits end
  for _, dependency in ipairs(finished) do note_use(task, dependency, 'finished') end
  add_all_to(uses, finished)
  if not waits[1] then call('HSET', task_key(task.user, task.id), 'linked', 1) end
  return waits
end

local bodies = {}

-- A delay begins when it waits for nothing else.
local function defer(task, waits)
  local user, id, when = task.user, task.id, task.when
  local delay = when ~= '' and string.match(when, '^%+(%d+)$')
  if not deferred[user] then users_deferred[#users_deferred + 1], deferred[user] = user, {} end
  table.insert(deferred[user], id)
  local key = task_key(user, id)
  call('HSET', key, 'state', 'deferred', 'came', next_arrival(), 'on_failure', task.policy, 'waits', waits[2] and #waits or '1',
    'linked', '1')
  if delay then call('HSET', key, 'delay', delay) elseif when ~= '' then call('HSET', key, 'due', due_at(when)) end
  add_all_to(needs_key(user, id), waits)
end

local function add(task)
  bodies[#bodies + 1] = task.key
  bodies[#bodies + 1] = task.body
  if bytes then bytes.change(task.user, 'body:' .. task.id, #task.body) end
  if task.ends then endings().keep(task.user, task.id, task.ends) end
  local due = due_at(task.when)
  local waits, ended_by = {}, nil
  if task.needs then waits, ended_by = depend_on_needs(task) end
  if ended_by then
    task.canceled = ended_by
  elseif waits[1] then
    defer(task, waits)
  elseif due > now then
    put_offs[#put_offs + 1] = { task.user, task.id, task.priority, due }
    gather(task.user, task.id, task.body, task.when)
  else
    put_in_lane(task.user, task.id, task.priority, task.body, step_us, task.came)
  end
  if task.rules and not ended_by then obey(task, due <= now and not waits[1]) end
end

-- Those that may add something, and by user how many more would where one is dropped that stands for them.
local function asked_for()
  local some, others = {}, {}
  for at, it in ipairs(all) do
    if it.standing == 'kept' then
      others[it.user] = (others[it.user] or 0) + 1
    elseif it.standing ~= 'superseded' and it.standing ~= 'answered' then
      some[#some + 1] = tasks[at]
    end
  end
  return some, others
end

local has_dropped = false
-- Whoever refuses does so before anything is dropped.
local function make_quota()
  local some, others = asked_for()
  local over = over_quota(some, others, false, ends_sizes)
  while over and over[1] == 'linked' do
    drop_oldest(over[2], over[3], dead_letter_ttl_ms)
    has_dropped = true
    read_tasks()
    some, others = asked_for()
    over = over_quota(some, others, true, ends_sizes)
  end
  return over
end

read_ends()
if has_damaged or has_moved then refuse_all_absent(tasks) end
look_for_known(tasks)
read_tasks()
refused = refused or with_ends[1] and (find_full_batch() or find_orphan())
refused = refused or with_needs and not is_in_order() and (find_unknown() or find_cycle())
if refused then return refused end
if governed then
  local full = make_quota()
  if full then return full end
  if has_dropped then depend().call_back(step_us, dead_letter_ttl_ms) end -- of ids that this call may put in again
  read_tasks()
end
-- Until the parent has ended it is known which children it has put in.
local function note_child(user, id, parent)
  call('SADD', children_key(user, parent.id), id)
  endings().mark(user, parent.id)
  call('HSET', task_key(user, id), 'parent', parent.id)
  if not parent.cancels then return end
  call('HSET', task_key(user, id), 'with_parent', parent.id)
  depend().link(user, id, parent.id)
end

local created = {}
local function add_all()
  make_room()
  for at, task in ipairs(all) do
    created[at] = task.standing == 'living' and 0 or 1
    if task.standing == 'replaces' then conditions().make_way(task, step_us) end
    if is_added(task) then
      take_links_over(task.user, task.id)
      add(task)
    end
  end
  write_links()
  write_places()
  if #bodies > 0 then call('MSET', unpack(bodies)) end
  join_groups(step_us)
  for _, task in ipairs(with_ends[1] and all or {}) do
    if task.batch and is_added(task) then endings().batches().add(task.user, task.batch.id, task.id) end
    if task.parent and is_added(task) then note_child(task.user, task.id, task.parent) end
  end
  for _, left in ipairs(next(decided) and conditions().left_batches or {}) do
    wake(left[1], endings().batches().complete_if_over(left[1], left[2], step_us))
  end
end

local is_done, failure = pcall(add_all)
if not is_done then damage().take_back_all(tasks, bodies, failure) end
for _, task in ipairs(all) do
  if task.rules and is_added(task) and not task.canceled then point_to(task) end
end
if with_needs or has_dropped then
  for _, task in ipairs(all) do
    if task.canceled then
      local by, stands = task.canceled[1], task.canceled[2]
      local reason, origin = depend().reason_of(task.user, by, stands), depend().origin_of(task.user, by, stands)
      end_canceled(task.user, task.id, reason, dead_letter_ttl_ms, origin)
    end
  end
  pass_on_outcomes(step_us, dead_letter_ttl_ms)
end
if has_dropped or next(decided) then pass_room_on() end
for at, task in ipairs(all) do
  if task.nonce then created[at] = conditions().keep_answer(task) end
end
save_state()
return created

-- Change what a policy says, and what hangs on that.
--@include base
--@include state
--@include fair
--@include limits
--@include wake
--@include sweep
--@include policies
--@include weighing

-- Returns the policy as a msgpack map, '' when nothing is left of it.
local function change_policy(whose, changes, forgotten)
  local key = prefix .. 'policy:' .. whose
  local packed = call('GET', key)
  local policy = packed and cmsgpack.unpack(packed) or {}
  local is_user = whose ~= '*' and string.byte(whose) ~= 64
  govern()
  local reservation, group = is_user and nodes.user(whose).policy.min_running or 0, policy.group
  local weight, had_bytes = policy.weight, policy.max_bytes
  if is_user then governed.know_places(whose) end
  for _, field in ipairs(forgotten) do
    if field == '*' then policy = {} end
    policy[field] = nil
  end
  for field, value in pairs(changes) do policy[field] = value end
  if group ~= policy.group then
    governed.leave(nodes.user(whose))
    nodes.forget_own_tag(nodes.user(whose))
    if has_assigned then assignments.withdraw(nodes.user(whose)) end
  end
  local answer = ''
  local index = prefix .. (is_user and 'policy-users' or 'policy-groups')
  if next(policy) then
    answer = cmsgpack.pack(policy)
    call('SET', key, answer)
    if whose ~= '*' then call('ZADD', index, 0, whose) end
    if not packed then count('policies', 1) end
  elseif packed then
    call('DEL', key)
    call('ZREM', index, whose)
    count('policies', -1)
  end

  local function change_user()
    local u = nodes.user(whose)
    if (u.policy.min_running or 0) < reservation then governed.forgive(u) end
    if nodes.is_somewhere(u) then nodes.reweight(u) end
    if governed.review(whose) then wake(whose, governed.waiting(whose)) end
    pass_room_on()
  end

  local function change_group()
    local line = lines.at(string.sub(whose, 2))
    nodes.rescale(line, line.weight / (policy.weight or 1))
    line.weight = policy.weight or 1
    line.is_changed = call('EXISTS', line.hash) == 1
  end

  local function change_default(was_paused)
    local sweep = new_sweep()
    sweep.change_default(was_paused, policy.weight ~= weight)
    sweep.tell_a_worker()
  end

  if (had_bytes == nil) ~= (policy.max_bytes == nil) then
    new_weighing().change_limit(whose, policy.max_bytes ~= nil)
    wake_from(prefix .. 'waiting', 1)
  end
  local was_paused = governed.all_paused
  governed.read_policies()
  if is_user then
    change_user()
  elseif whose ~= '*' then
    change_group()
  elseif packed or answer ~= '' then
    change_default(was_paused)
  end
  return answer
end

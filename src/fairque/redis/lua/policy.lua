#!lua flags=allow-oom
-- Change a policy: of a user, of a group, or of everybody who does not say otherwise.
-- KEYS[1]  state
-- Returns  the policy as a msgpack map, '' when nothing is left of it
-- Cost     O(log users); the default of '*' is brought to those who wait by the claims that follow
--@include base
--@include state
--@include fair
--@include limits
--@include wake
--@include sweep
--@include policies
--@arguments
local key = prefix .. 'policy:' .. whose
local packed = call('GET', key)
local policy = packed and cmsgpack.unpack(packed) or {}
local is_user = whose ~= '*' and string.byte(whose) ~= 64
governed = governed or new_government()
local before = is_user and governed.user(whose) or {}
local weight, reserved, group = before.weight or policy.weight or 1, before.policy and before.policy.min_running, policy.group
for _, field in ipairs(forgotten) do
  if field == '*' then policy = {} end
  policy[field] = nil
end
for field, value in pairs(changes) do policy[field] = value end
if group ~= policy.group then
  governed.leave(governed.user(whose))
  -- Its tag belongs to the time of the group that it was in.
  call('HDEL', user_key(whose), 'tag', 'capped')
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
if is_user then
  call('ZREM', prefix .. 'reserved', whose)
  governed = new_government()
  local after = governed.user(whose)
  if (after.policy.min_running or 0) < (reserved or 0) then governed.forgive(after) end
  if after.weight ~= weight then governed.reweight(after, weight) end
  if governed.review(whose) then wake(whose, governed.waiting(whose)) end
  local woken = {}
  if limited then limited.pass_on(woken) end
  for user, tasks in pairs(woken) do wake(user, tasks) end
elseif whose ~= '*' then
  governed.reweight_group(whose, weight)
elseif packed or answer ~= '' then
  local was_paused = governed.all_paused
  governed = new_government()
  new_sweep().change_default(was_paused)
  if wake_from(prefix .. 'waiting', 1) > 0 then tell_all_workers() end -- none that serves everyone is idle
end
save_state()
forget_policies_if_none()
return answer

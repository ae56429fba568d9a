#!lua
-- Write schedules, all of a call or none: new ones, and ones that are as their writer has read them.
-- KEYS[1]  state
-- Returns  'done' (also by an earlier try of the same call) | 'exists' | 'missing' | 'changed' (since it was read) |
--          {'heavy', user, bytes used, limit, bytes asked for, ms}
-- Cost     O(schedules log schedules)
--@include base
--@include absent
--@include schedules
--@include schedule_keepers
--@arguments
local more, orders, soonest = {}, {}, math.huge

local function problem_of(known, read)
  local is_there = known[1] and known[2]
  if read == '' then return is_there and 'exists' end
  if not is_there then return 'missing' end
  return known[1] ~= read and 'changed'
end

local function weigh_change(id, user, known, fields)
  for _, field in ipairs(fields) do
    --@fields Field field
    if name == 'body' or name == 'callbacks' then
      local before = known[2] == user and call('HSTRLEN', schedule_key(id), name) or 0
      more[user] = (more[user] or 0) + #value - before
    end
  end
end

-- Where it is listed follows its state.
local function list(id, user, next_ms)
  if call('HGET', schedule_key(id), 'state') == 'ended' then
    end_schedule(user, id, keep_ms)
  else
    call('ZREM', ended_key, id)
    if next_ms == '' then
      fire_no_more(user, id)
    elseif next_ms ~= 'keep' then
      fire_at(user, id, next_ms)
      soonest = math.min(soonest, next_ms)
    end
  end
  call('ZADD', index_key, 0, user .. ':' .. id)
end

-- To another user. Returns when it fires next.
local function move(id, owner, next_ms)
  if next_ms == 'keep' then next_ms = call('ZSCORE', schedules_of(owner), id) or '' end
  fire_no_more(owner, id)
  call('ZREM', index_key, owner .. ':' .. id)
  return next_ms
end

local function write(order)
  --@fields WrittenSchedule order
  local key, owner = schedule_key(id), order.owner
  if read == '' then forget_schedule(id) end
  if owner then weigh_schedule(owner, id, -1) end
  if owner and owner ~= user then next_ms = move(id, owner, next_ms) end
  call('HSET', key, 'revision', revision, 'user', user)
  if read == '' then call('HSET', key, 'created', now_text) end
  for _, field in ipairs(fields) do
    --@fields Field field
    if value == '' then call('HDEL', key, name) else call('HSET', key, name, value) end
  end
  weigh_schedule(user, id, 1)
  list(id, user, next_ms)
end

for _, order in ipairs(schedules) do
  --@fields WrittenSchedule order: id user read fields
  local known = read_schedule(id, 'revision', 'user')
  refuse_absent(user)
  if known[2] and known[2] ~= user then refuse_absent(known[2]) end
  if known[1] ~= revision then
    local problem = problem_of(known, read)
    if problem then return problem end
    weigh_change(id, user, known, fields)
    order.owner = read ~= '' and known[2] or nil
    orders[#orders + 1] = order
  end
end
for user, size in pairs(bytes and more or {}) do
  local too_heavy = bytes.refuse(user, size)
  if too_heavy then return too_heavy end
end
for _, order in ipairs(orders) do write(order) end
if save_bytes then save_bytes() end
if soonest < math.huge then tell_keepers(soonest) end
return 'done'

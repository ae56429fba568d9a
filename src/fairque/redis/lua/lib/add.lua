-- What all scripts that add tasks need. Tasks are `AddedTask`, and what begins as one does.
--@include base
--@include state
--@include task
--@include letter
--@include fair
--@include wake
--@include place
--@include message
--@include collect

-- One look at every key at once: the usual answer is that all ids are new, and nobody waits for them.
local fresh, seen = false, {}
local decided = {} -- by key of the body: 'new' or 'replaces', of those that are added on a condition
local function look_for_known(tasks)
  local keys = {}
  for _, task in ipairs(tasks) do
    --@fields AddedTask task: user id
    local n = #keys
    keys[n + 1], keys[n + 2], keys[n + 3] = body_key(user, id), result_key(user, id), feeds_key(user, id)
  end
  fresh = call('EXISTS', unpack(keys)) == 0
end

-- 'new', or 'retried' when this very call stored it before, or 'living'. What has ended will make room.
-- `put_in_before`: by the key of its body, one that its parent has put in, whatever became of it.
local replaced, put_in_before = {}, {}
local function standing(user, id, body, key)
  if seen[key] then return 'living' end
  seen[key] = true
  if fresh then return put_in_before[key] and 'living' or 'new' end
  local result = result_key(user, id)
  local known = call('GETRANGE', key, 0, 8)
  if known == '' then known = call('GETRANGE', result, 0, 8) end
  if known == string.sub(body, 1, 9) then return 'retried' end
  if put_in_before[key] then return 'living' end
  local ended = call('EXISTS', result) == 1 or call('HGET', task_key(user, id), 'state') == 'failed'
  if not ended and known ~= '' then return 'living' end
  if ended then replaced[#replaced + 1] = { user, id } end
  return 'new'
end

-- Nothing is added to who stands still, or lives elsewhere.
local function refuse_all_absent(tasks)
  local all = {}
  for at, task in ipairs(tasks) do
    --@fields AddedTask task: user
    all[at] = user
  end
  refuse_all_moved(all)
  for _, user in ipairs(all) do refuse_frozen(user) end
end

local function make_room()
  for _, ended in ipairs(replaced) do
    unlist_dead(ended[1], ended[2])
    erase_task(ended[1], ended[2])
  end
  replaced = {}
end

local function has_waiters(user, id)
  return call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0
end

-- Whoever waits for an id waits for the new task, even when all else about the one before is gone. What a dead letter used
-- is let go at the end of the new one.
local function take_links_over(user, id)
  if fresh then return end
  if has_waiters(user, id) or call('EXISTS', uses_key(user, id)) == 1 then call('HSET', task_key(user, id), 'linked', 1) end
end

local gathered = {} -- { user, id, name, when } of those that are to run with others
local put_offs = {} -- { user, id, priority, due }: those that are written at the end
local function gather(user, id, body, when)
  if string.byte(when) == 99 then gathered[#gathered + 1] = { user, id, name_in(body), when } end
end

-- When their bodies are written as well.
local function join_groups(step_us)
  for _, of in ipairs(gathered) do collecting().join(of[1], of[2], of[3], of[4], step_us) end
end

local function put_off(user, id, priority, due)
  call('HSET', task_key(user, id), 'state', 'scheduled', 'priority', priority, 'enqueued', now)
  schedule(user, id, due)
end

-- Lanes are filled at the end, those of a user at once; users in the order in which they came. The first task of a user
-- decides where it enters. `came`: the arrival of the task whose place it takes, if it does.
local users, placed = {}, {}
local function put_in_lane(user, id, priority, body, step_us, came)
  local of_user = placed[user]
  if not of_user then
    of_user = { cost = cost_of(body), critical = {}, normal = {} }
    users[#users + 1], placed[user] = user, of_user
  end
  local lane, score = score_of(priority, step_us, came)
  local scored = of_user[lane]
  scored[#scored + 1] = score
  scored[#scored + 1] = id
end

local function fill_lanes(user, by_lane)
  local tasks = 0
  for _, lane in ipairs({ 'critical', 'normal' }) do
    local scored = by_lane[lane]
    if #scored > 0 then
      call('ZADD', place_key(lane, user), unpack(scored))
      count(lane, #scored / 2)
      tasks = tasks + #scored / 2
    end
  end
  if admit(user, by_lane.cost) then wake(user, tasks) end
end

-- Everything is in its place but for this and the bodies, which may fail on the way: what calls it takes all back then.
local function write_places()
  if #users > 0 then choice.expect(users) end
  for _, user in ipairs(users) do fill_lanes(user, placed[user]) end
  for _, off in ipairs(put_offs) do put_off(unpack(off)) end
end

-- A user whose quota does not hold what is new in this call, or nil: one that refuses before one that drops. `asked`: by
-- user, how many more than these are asked for. `dropped`: room was made for some already. `beside`: bytes beside its body,
-- by the key of that.
local function over_quota(tasks, asked, dropped, beside)
  local more, sizes, key_seen, drop, in_turn = {}, {}, {}, nil, {}
  asked = asked or {}
  seen = {}
  for _, task in ipairs(tasks) do
    --@fields AddedTask task: user id body
    local key = body_key(user, id)
    local found = key_seen[key] and 'seen' or decided[key] or fresh and not put_in_before[key] and 'new'
      or standing(user, id, body, key)
    local size = #body + (beside and beside[key] or 0)
    key_seen[key] = true
    if (found == 'new' or found == 'replaces') and not more[user] then in_turn[#in_turn + 1] = user end
    if found == 'new' then more[user], sizes[user] = (more[user] or 0) + 1, (sizes[user] or 0) + size end
    if found == 'replaces' then
      more[user], sizes[user] = more[user] or 0, (sizes[user] or 0) + math.max(0, size - call('STRLEN', key))
    end
    if found ~= 'seen' and found ~= 'retried' then asked[user] = (asked[user] or 0) + 1 end
  end
  seen, replaced = {}, {} -- what was only asked
  for _, user in ipairs(in_turn) do
    local too_heavy = bytes and not dropped and bytes.refuse(user, sizes[user])
    if too_heavy then return too_heavy end
    local excess = governed.excess(user, more[user])
    if excess > 0 then
      if not governed.may_drop(user, asked[user]) then return { 'full', user, governed.retry_after(user, excess) } end
      drop = drop or { 'linked', user, excess }
    end
  end
  return drop
end

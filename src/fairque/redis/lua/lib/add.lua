-- What both scripts that add tasks need. FIRST is where the users start in ARGV, FIELDS how many arguments a task has.
-- One look at every key at once: the usual answer is that all ids are new, and nobody waits for them.
local function all_new()
  local keys, i = {}, FIRST
  while i <= #ARGV do
    local user, n = ARGV[i], tonumber(ARGV[i + 1])
    for at = i + 2, i + 1 + n * FIELDS, FIELDS do
      keys[#keys + 1] = body_key(user, ARGV[at])
      keys[#keys + 1] = result_key(user, ARGV[at])
      keys[#keys + 1] = feeds_key(user, ARGV[at])
    end
    i = i + 2 + n * FIELDS
  end
  return call('EXISTS', unpack(keys)) == 0
end

local fresh, seen = all_new(), {}

-- 'new', or 'retried' when this very call stored it before, or 'living'. What has ended will make room.
local replaced = {}
local function standing(user, id, body, key)
  if seen[key] then return 'living' end
  seen[key] = true
  if fresh then return 'new' end
  local result = result_key(user, id)
  local known = call('GETRANGE', key, 0, 8)
  if known == '' then known = call('GETRANGE', result, 0, 8) end
  if known == string.sub(body, 1, 9) then return 'retried' end
  local ended = call('EXISTS', result) == 1 or call('HGET', task_key(user, id), 'state') == 'failed'
  if not ended and known ~= '' then return 'living' end
  if ended then replaced[#replaced + 1] = { user, id } end
  return 'new'
end

local function make_room()
  for _, ended in ipairs(replaced) do
    local user, id = ended[1], ended[2]
    call('DEL', result_key(user, id), body_key(user, id), task_key(user, id), errors_key(user, id))
    call('ZREM', prefix .. 'dead:' .. user, id)
    call('ZREM', prefix .. 'dead', user .. ':' .. id)
  end
  replaced = {}
end

local function has_waiters(user, id)
  return call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0
end

-- Whoever waits for an id waits for the new task, even when all else about the one before is gone.
local function take_waiters_over(user, id)
  if not fresh and has_waiters(user, id) then call('HSET', task_key(user, id), 'feeds', 1) end
end

local function due_at(when)
  if when == '' then return 0 end
  if string.sub(when, 1, 1) == '+' then return now + tonumber(string.sub(when, 2)) end
  return tonumber(when)
end

-- Sleeping workers know when the next task is due: one of them must hear of an earlier one.
local function is_next_due(at)
  local earliest = tonumber(call('ZRANGE', due_key, 0, 0, 'WITHSCORES')[2] or math.huge)
  return at < earliest
end

-- A user whose quota does not hold what is new in this call, or nil: one that refuses before one that drops.
local function over_quota()
  local more, asked, i, key_seen, drop = {}, {}, FIRST, {}, nil
  seen = {}
  while i <= #ARGV do
    local user, n = ARGV[i], tonumber(ARGV[i + 1])
    for at = i + 2, i + 1 + n * FIELDS, FIELDS do
      local key = body_key(user, ARGV[at])
      local found = key_seen[key] and 'seen' or fresh and 'new' or standing(user, ARGV[at], ARGV[at + 3], key)
      key_seen[key] = true
      if found == 'new' then more[user] = (more[user] or 0) + 1 end
      if found == 'new' or found == 'living' then asked[user] = (asked[user] or 0) + 1 end
    end
    i = i + 2 + n * FIELDS
  end
  seen, replaced = {}, {} -- what was only asked
  for user, tasks in pairs(more) do
    local excess = governed.excess(user, tasks)
    if excess > 0 then
      if not governed.may_drop(user, asked[user]) then return { 'full', user, governed.retry_after(user, excess) } end
      drop = { 'linked', user, excess }
    end
  end
  return drop
end

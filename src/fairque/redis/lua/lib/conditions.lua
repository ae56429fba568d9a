-- Tasks that are put in on a condition. What each was answered is kept for a minute: else a call that is repeated after a
-- cut reply would meet its own work, or do it once more on top of a newer one.
--@include base
--@include state
--@include task
--@include message
--@include add
--@include expiry
--@include depend
--@include cancel
--@include once

local CREATED, KEPT, REPLACED = 1, 0, 2 -- `Enqueued` in redis/replies.py

-- Of a task that lives, and its place: it has not begun, or waits to be tried again.
local function may_be_replaced(user, id) return call('HGET', task_key(user, id), 'state') ~= 'started' end

-- What becomes of `it`, as `standing` says it, or 'answered', 'replaces'; notes its answer. `earlier`: one of this call that
-- has its id, and is superseded where this one takes its place. Second: why the whole call is refused.
local function judge(it, earlier)
  --@fields Rules it.rules: conflict nonce
  it.nonce = nonce
  it.answer = answered(nonce)
  if it.answer then return 'answered' end
  it.answer = { CREATED, it.id }
  local found = 'living'
  if not earlier then
    seen[it.key] = nil
    found = standing(it.user, it.id, it.body, it.key)
  end
  if found ~= 'living' then return found end
  if conflict == 'error' then return found, { 'exists', it.user, it.id } end
  local replaces = conflict == 'replace' and (earlier or may_be_replaced(it.user, it.id))
  it.answer = { replaces and REPLACED or KEPT, it.id }
  if not replaces then return found end
  if not earlier then return 'replaces' end
  found, earlier.standing = earlier.standing, 'superseded'
  return found
end

-- What its leaving writes, read first: one key of another type shows before anything is written.
local function prove_places(user, id)
  for _, spot in ipairs({ 'critical', 'normal', 'held', 'scheduled', 'expiring' }) do call('ZCARD', place_key(spot, user)) end
  call('SCARD', place_key('deferred', user))
  call('LLEN', errors_key(user, id))
  call('EXISTS', result_key(user, id))
  for _, key in ipairs({ needs_key(user, id), uses_key(user, id), feeds_key(user, id), informed_key(user, id) }) do
    call('SCARD', key)
  end
end

-- The task of this id leaves its place to `it`, which takes it where both wait for nothing but their turn. Those that depend
-- on it depend on the new one.
local function make_way(it, step_us)
  local user, id = it.user, it.id
  local key = task_key(user, id)
  prove_places(user, id)
  local known = call('HMGET', key, 'state', 'score', 'lane', 'watched')
  local state, score, lane = known[1] or 'queued', known[2], known[3]
  if state == 'queued' then
    for _, spot in ipairs(score and {} or { 'critical', 'normal' }) do
      score, lane = call('ZSCORE', place_key(spot, user), id), spot
      if score then break end
    end
    local priority = string.byte(call('GETRANGE', it.key, 17, 17)) or 3
    it.came = score and arrival_of(lane, score, priority, step_us)
  end
  withdraw(user, id, state)
  deadlines().forget(user, id)
  depend().forget(user, id)
  erase_task(user, id)
  if known[4] then
    call('HSET', key, 'watched', known[4])
    publish(user, id, 'waiting')
  end
end

local function keep_answer(it) return answer(it.nonce, it.answer) end

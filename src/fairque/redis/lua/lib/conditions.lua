-- Tasks that are put in on a condition. What each was answered is kept for a minute: else a call that is repeated after
-- a cut reply would meet its own work, or do it once more on top of a newer one. Of what comes from a database the answer
-- is a receipt, kept until `confirm` hears that it is gone there: until then it may come again.
--@include base
--@include state
--@include task
--@include message
--@include add
--@include expiry
--@include pointers
--@include depend
--@include once

-- Made by the first that needs it: a script has room for 200 names.
local known_conditions
local function conditions()
  if known_conditions then return known_conditions end
  local them = {}
  known_conditions = them
  them.left_batches = {} -- which counted what was replaced, as {user, batch}

  local RECEIPT_TTL = 604800000
  local CREATED, KEPT, REPLACED, DROPPED = 1, 0, 2, 3 -- `put_in` in redis/replies.py

  -- Of a task that lives, and its place: it has not begun, or waits to be tried again.
  local function may_be_replaced(user, id) return call('HGET', task_key(user, id), 'state') ~= 'started' end

  local function supersede(it, earlier)
    it.answer = { REPLACED, it.id }
    local found = earlier.standing
    earlier.standing = 'superseded'
    return found
  end

  -- As `judge`, by its id.
  local function judge_id(it, earlier, conflict)
    it.answer = { CREATED, it.id }
    local found = 'living'
    if not earlier then
      seen[it.key] = nil
      found = standing(it.user, it.id, it.body, it.key)
    end
    if found ~= 'living' then return found end
    if conflict == 'error' then return found, { 'exists', it.user, it.id } end
    local replaces = conflict == 'replace' and (earlier or may_be_replaced(it.user, it.id))
    if replaces and earlier then return supersede(it, earlier) end
    it.answer = { replaces and REPLACED or KEPT, it.id }
    return replaces and 'replaces' or found
  end

  -- One that is debounced waits for `span_ms` from the last call on, at most for `longest_ms` from the first one on.
  local function put_off_again(it)
    --@fields Rules it.rules: span_ms longest_ms
    local due = now + span_ms
    if longest_ms > 0 then due = math.min(due, (it.first or now) + longest_ms) end
    it.when = string.format('%d', due)
  end

  local function take_id(it, id)
    it.id, it.key = id, body_key(it.user, id)
    it.task[2] = id
  end

  -- The task that has its key waits still, and is brought up to date. One whose time has come keeps its place in line.
  local function take_over(it, id)
    take_id(it, id)
    local known = call('HMGET', task_key(it.user, id), 'state', 'first')
    it.first, it.answer = tonumber(known[2]), { REPLACED, id }
    if known[1] == 'scheduled' then put_off_again(it) end
    return 'replaces'
  end

  -- By the key under which it is alone. `first`: one of this call that has it. Nil: it is for this task to have.
  local function judge_key(it, first, kind, pointer)
    local id = first and first.id or pointers.holder(it.user, pointer)
    if not id then
      if kind == 'debounce' then put_off_again(it) end
      return nil
    end
    if kind ~= 'debounce' then
      it.answer = { kind == 'throttle' and DROPPED or KEPT, id }
      return 'kept'
    end
    if not first then return take_over(it, id) end
    take_id(it, id)
    it.first, it.when, it.came = first.first, first.when, first.came
    if first.standing == 'new' then put_off_again(it) end
    return supersede(it, first)
  end

  -- What becomes of `it`, as `standing` says it, or 'answered', 'replaces', 'kept'; notes its answer. `mine`: by id, those
  -- of this call that are added for its user, of which one is superseded where this one takes its place; `pointing`: by
  -- key. Second: why the whole call is refused.
  function them.judge(it, mine, pointing)
    --@fields Rules it.rules: conflict nonce kind pointer receipt_by_ms
    it.nonce, it.has_receipt = nonce, receipt_by_ms > 0
    it.answer = answered(nonce)
    if it.answer then return 'answered' end
    if it.has_receipt and now > receipt_by_ms then return 'kept', { 'late', it.user } end
    local found, refusal
    if kind ~= '' then found = judge_key(it, pointing[pointer], kind, pointer) end
    if not found then found, refusal = judge_id(it, mine[it.id], conflict) end
    if kind ~= '' and (found == 'new' or found == 'replaces') then pointing[pointer] = it end
    return found, refusal
  end

  -- What its leaving writes, read first: one key of another type shows before anything is written.
  local function prove_places(user, id)
    for _, spot in ipairs({ 'critical', 'normal', 'held', 'scheduled', 'expiring' }) do
      call('ZCARD', place_key(spot, user))
    end
    call('SCARD', place_key('deferred', user))
    call('LLEN', errors_key(user, id))
    call('EXISTS', result_key(user, id))
    for _, key in ipairs({ needs_key(user, id), uses_key(user, id), feeds_key(user, id), informed_key(user, id) }) do
      call('SCARD', key)
    end
  end

  -- The task of this id leaves its place to `it`, which takes it where both wait for nothing but their turn. Those that
  -- depend on it depend on the new one.
  function them.make_way(it, step_us)
    local user, id = it.user, it.id
    local key = task_key(user, id)
    prove_places(user, id)
    local known = call('HMGET', key, 'state', 'score', 'lane', 'watched', 'unique')
    local state, score, lane = known[1] or 'queued', known[2], known[3]
    if state == 'queued' then
      for _, spot in ipairs(score and {} or { 'critical', 'normal' }) do
        score, lane = call('ZSCORE', place_key(spot, user), id), spot
        if score then break end
      end
      local priority = string.byte(call('GETRANGE', it.key, 17, 17)) or 3
      it.came = score and arrival_of(lane, score, priority, step_us)
    end
    take_out(user, id, state)
    deadlines.forget(user, id)
    if known[5] then pointers.let_go(user, id, known[5]) end
    depend().forget(user, id)
    local batch = endings().drop(user, id)
    if batch then them.left_batches[#them.left_batches + 1] = { user, batch } end
    erase_task(user, id)
    if known[4] then
      call('HSET', key, 'watched', known[4])
      publish(user, id, 'waiting')
    end
  end

  function them.keep_answer(it) return answer(it.nonce, it.answer, it.has_receipt and RECEIPT_TTL) end

  return them
end

-- How deliveries ended. `report` is a `Settle`; returns the reply of settle.lua. claims: whether the worker claims right
-- after it, so that it need not be told of work.
--@include base
--@include state
--@include task
--@include message
--@include metrics
--@include fair
--@include wake
--@include place
--@include limits
--@include canceled
--@include pointers
--@include depend
--@include xcom
--@include suspects
--@include charging
--@include fitting
--@include dead_kinds
--@include whereabouts
--@include packed

local function users_of(outcomes)
  local users, is_there, told, at = {}, {}, list_in(outcomes)
  for _ = 1, told do
    --@unpacked SettledDelivery outcomes at
    if not is_there[user] then users[#users + 1], is_there[user] = user, true end
    at = after
  end
  return users
end

-- Each outcome is taken by itself: one that fails keeps nothing from the others.
local function settle_outcomes(report, claims)
  --@fields Settle report
  local step_us = priority_step_ms * 1000
  local KEPT_ERRORS = 20
  local TOLD_BYTES = 1024 -- a result that is no larger is told with the message of the end
  local woken = {}

  -- What some tasks have: `unique` and `yielded` of one that has waited elsewhere than in its lane.
  local PLAIN, extras = {}, nil

  -- Deliveries that end leave their streams together, the last one of a lane with its stream; with them go the keys of
  -- tasks of which nothing is left. is_gone: by the key of a task, so that one that is told of twice is not taken twice.
  -- sizes: of the streams, read before anything is written, as that tells whether they are some.
  local MOST_KEYS = 3000 -- of one DEL
  local streams, over, sizes, gone, is_gone = {}, {}, {}, {}, {}
  local stream -- of the outcome that is looked at

  local function remove_delivery(lane, user, stream_id)
    local ids = over[stream]
    if ids then
      ids[#ids + 1] = stream_id
    else
      local n = #streams
      streams[n + 1], streams[n + 2], over[stream] = stream, lane .. ':' .. user, { stream_id }
    end
    if governed then governed.user(user).running = nil end
  end

  local function forget_task(key, ...)
    is_gone[key], gone[#gone + 1] = true, key
    for at = 1, select('#', ...) do gone[#gone + 1] = select(at, ...) end
  end

  local function end_deliveries()
    local empty, ended = {}, 0
    for at = 1, #streams, 2 do
      local key = streams[at]
      local ids = over[key]
      if #ids == sizes[key] then
        gone[#gone + 1], empty[#empty + 1], ended = key, streams[at + 1], ended + #ids
      else
        call('XACK', key, 'workers', unpack(ids))
        count('started', -call('XDEL', key, unpack(ids)))
      end
    end
    for at = 1, #gone, MOST_KEYS do call('DEL', unpack(gone, at, math.min(at + MOST_KEYS - 1, #gone))) end
    count('started', -ended)
    streams, over, sizes, gone, is_gone = {}, {}, {}, {}, {}
    if empty[1] then call('ZREM', leases_key, unpack(empty)) end
  end

  local function keep_error(user, id, record, is_cut)
    local key = errors_key(user, id)
    local kept = call('RPUSH', key, record)
    if is_cut or kept > KEPT_ERRORS then call('LTRIM', key, is_cut and -1 or -KEPT_ERRORS, -1) end
  end

  -- Those whose time is over, some at each failure: one that follows many must not take long.
  local FORGOTTEN = 100
  local function forget_letters(key)
    local old = call('ZCOUNT', key, '-inf', now - dead_letter_ttl_ms)
    if old > 0 then call('ZREMRANGEBYRANK', key, 0, math.min(old, FORGOTTEN) - 1) end
  end

  -- Reads, or tidies, each key that this outcome will write and that nothing else has read: one of another type shows
  -- before anything is written. A result replaces what is there, whatever that is.
  local function prove(kind, user, id, lane, delay, linked)
    if kind == 'canceled' then return end
    if kind ~= 'released' then call('LLEN', errors_key(user, id)) end
    if kind == 'failed' then
      forget_letters(place_key('dead', user))
      forget_letters(prefix .. 'dead')
      if linked then call('ZCARD', place_key('lapsing', user)) end
    else
      choice.know(user)
      call('ZCARD', place_key(delay > 0 and 'scheduled' or lane, user))
    end
  end

  -- Results that others need: noted at their tasks when nothing of those is there any more.
  local kept = {}
  local function note_kept()
    for _, of in ipairs(kept) do depend().note_kept(of[1], of[2], of[3]) end
  end

  local ends = {}

  -- Of one that was put in with rules.
  local function let_go_of_key(user, id)
    if not extras[1] then return end
    pointers.let_go(user, id, extras[1], true)
    call('HDEL', task_key(user, id), 'unique')
  end

  -- What comes is written before what goes is removed, so that nothing is gone where one of both is refused.
  function ends.finished(user, id, lane, stream_id, _, ttl, _, record, _, linked, has_ends, _, is_plain, key)
    local dependents = linked and depend().dependents_of(user, id)
    local is_kept = dependents and dependents[1]
    if is_kept then call('SET', result_key(user, id), record) else call('SET', result_key(user, id), record, 'PX', ttl) end
    if is_plain then
      forget_task(key, body_key(user, id))
    else
      let_go_of_key(user, id)
      forget_task(keys_of_task(user, id))
    end
    remove_delivery(lane, user, stream_id)
    if is_kept then kept[#kept + 1] = { user, id, ttl } end
    if linked then announce(user, id, 'finished', has_ends, dependents) end
    publish(user, id, #record <= TOLD_BYTES and '=' .. record or 'finished')
  end

  function ends.canceled(user, id, lane, stream_id, _, _, _, _, reason)
    end_canceled(user, id, reason, dead_letter_ttl_ms)
    remove_delivery(lane, user, stream_id)
  end

  function ends.failed(user, id, lane, stream_id, attempt, _, _, record, error, linked, has_ends, is_cut)
    local dead, all_dead = place_key('dead', user), prefix .. 'dead'
    let_go_of_key(user, id)
    if linked then depend().lapse_at(user, id, now + dead_letter_ttl_ms) end
    call('ZADD', dead, now, id)
    call('PEXPIRE', dead, dead_letter_ttl_ms)
    call('ZADD', all_dead, now, user .. ':' .. id)
    call('PEXPIRE', all_dead, dead_letter_ttl_ms)
    call('SET', result_key(user, id), record, 'PX', dead_letter_ttl_ms)
    keep_error(user, id, error, is_cut)
    call('PEXPIRE', errors_key(user, id), dead_letter_ttl_ms)
    call('PEXPIRE', body_key(user, id), dead_letter_ttl_ms)
    local key = task_key(user, id)
    call('HSET', key, 'state', 'failed', 'attempt', attempt, 'stream_id', '', 'ended', now,
      'dead_kind', list_by_kind(user, id, error, now_text, dead_letter_ttl_ms),
      'last', stream_id .. ' ' .. attempt) -- by which a repeated report knows it, also after a requeue
    call('PEXPIRE', key, dead_letter_ttl_ms)
    remove_delivery(lane, user, stream_id)
    if linked then announce(user, id, 'failed', has_ends) end
    publish(user, id, 'failed')
  end

  -- Back to its place: at once, or when its time has come.
  local function put_back(user, id, lane, stream_id, attempt, counted, delay, to)
    local key = task_key(user, id)
    call('HSET', key, 'last', stream_id .. ' ' .. attempt)
    if delay > 0 then
      schedule(user, id, now + delay)
      call('HSET', key, 'state', 'scheduled', 'attempt', counted, 'stream_id', '')
    else
      call('ZADD', place_key(to or lane, user), call('HGET', key, 'score'), id)
      count(to or lane, 1)
      call('HSET', key, 'state', 'queued', 'attempt', counted, 'stream_id', '', 'queued', now)
    end
    remove_delivery(lane, user, stream_id)
    end_deliveries() -- who may be served depends on what runs
    if delay <= 0 and admit(user, cost_of_task(user, id)) then woken[user] = (woken[user] or 0) + 1 end
    publish(user, id, 'waiting')
  end

  function ends.retry(user, id, lane, stream_id, attempt, _, delay, _, error, _, _, is_cut)
    keep_error(user, id, error, is_cut)
    local key = task_key(user, id)
    call('HINCRBY', key, 'failures', 1)
    clear_its_name(key)
    put_back(user, id, lane, stream_id, attempt, attempt, delay)
  end

  function ends.snoozed(user, id, lane, stream_id, attempt, _, delay)
    local key = task_key(user, id)
    call('HINCRBY', key, 'snoozed', 1)
    clear_its_name(key)
    put_back(user, id, lane, stream_id, attempt, attempt - 1, delay)
  end

  function ends.released(user, id, lane, stream_id, attempt, _, delay)
    local key = task_key(user, id)
    call('HDEL', key, 'alone', 'received')
    if delay > 0 then
      call('HINCRBY', key, 'returned', 1)
      call('HSETNX', key, 'since', now)
      local expires = attempt == 1 and call('HGET', key, 'expires') -- nobody knew it, and so it has not begun
      if expires then deadlines.note(user, id, expires) end
    else
      call('HSET', key, 'paid', 1)
    end
    put_back(user, id, lane, stream_id, attempt, attempt - 1, delay)
  end

  -- It has not run: what it was charged is made what its code says, and its next start is paid for.
  function ends.restated(user, id, lane, stream_id, attempt, _, _, body)
    local key, old = task_key(user, id), call('GETRANGE', body_key(user, id), 0, 17)
    local known, before, priority = call('HMGET', key, 'score', 'charged'), string.byte(old, 18), string.byte(body, 18)
    local to, score = lane, tonumber(known[1])
    if priority ~= before then -- of a call that said none, so it was not critical
      to = priority == 6 and 'critical' or 'normal'
      score = score + (before - (priority == 6 and 1 or priority)) * step_us
    end
    call('ZCARD', place_key(to, user))
    if known[2] then adjust(user, -known[2]) else adjust(user, cost_of(body) - cost_of(old)) end
    if bytes then bytes.change(user, 'body:' .. id, #body - call('STRLEN', body_key(user, id))) end
    call('SET', body_key(user, id), body)
    call('HDEL', key, 'charged', 'alone', 'received')
    call('HSET', key, 'lane', to, 'score', string.format('%.0f', score), 'paid', 1)
    put_back(user, id, lane, stream_id, attempt, attempt - 1, 0, to)
  end

  -- The record of a task that ended as canceled tells which worker's attempt that was.
  local function was_canceled(record, attempt)
    if not record or string.sub(record, 10, 10) ~= 'C' then return false end
    local fields = cmsgpack.unpack(string.sub(record, 11))
    return fields[2] == attempt and fields[6] == worker
  end

  -- The same outcome may arrive twice when the first reply was cut.
  local function already_done(user, id, stream_id, attempt, record)
    if call('HGET', task_key(user, id), 'last') == stream_id .. ' ' .. attempt then return true end
    local found = call('GET', result_key(user, id))
    if record ~= '' then return found == record end
    return was_canceled(found, attempt)
  end

  local function push(user, packed)
    local space, key, ttl = struct.unpack('>I4I4d', packed)
    local value_at = 17 + space + key
    new_xcom().push(user, string.sub(packed, 17, 16 + space), string.sub(packed, 17 + space, value_at - 1),
      string.sub(packed, value_at), ttl)
  end

  -- A task that was canceled while it ran is not tried again.
  local function settled_kind(kind, canceling)
    if canceling and (kind == 'retry' or kind == 'released' or kind == 'snoozed' or kind == 'restated') then return 'canceled' end
    return kind
  end

  -- Shares follow what was used: what was charged at the claim is corrected. Returns what the service cost in the end.
  local function correct(user, id, kind, cost, charge, run, charged)
    if not charged then
      if charge ~= 0 then adjust(user, charge) end
      return cost + charge
    end
    local charging, key = new_charging(), task_key(user, id)
    local before = call('HGET', key, 'charged_before')
    local total = charging.finish(user, cost, charged, run, charge)
    if kind == 'retry' or kind == 'snoozed' then call('HDEL', key, 'charged', 'charged_before') end
    if kind == 'released' then call('HSET', key, 'charged', total) elseif run > 0 then charging.learn(user, id, run / 1000) end
    return total + (before or 0)
  end

  local COUNTED = { finished = 'finished', failed = 'failed', retry = 'retried' }
  local reviewed = {}
  local function account(user, id, kind, cost, charge, run, charged)
    if kind == 'restated' or (kind == 'released' and not charged) then return end
    local total = correct(user, id, kind, cost, charge, run, charged)
    if kind == 'released' then return end
    if governed and kind ~= 'canceled' and kind ~= 'snoozed' then governed.note_end(governed.user(user), kind == 'finished') end
    return total
  end

  -- Changes nothing: is what tells of ends, and keeps results, permitted?
  local has_asked = false
  local function ask_for_permission(user, id, linked)
    if has_asked then return end
    call('ZADD', users_key, 'XX', 'GT', 0, user)
    call('HSET', task_key(user, id), 'linked', linked)
    has_asked = true
  end

  -- Returns the answer, and true where it was this call that took the outcome.
  local fit
  local HAS_BYTES = { finished = true, failed = true, retry = true } -- of canceled ones lib/canceled.lua sees to it
  local told, next_at = list_in(outcomes)
  local of_user, of_id -- of the outcome that is looked at
  local function settle()
    --@unpacked SettledDelivery outcomes next_at
    next_at, of_user, of_id = after, user, id
    if has_damaged or has_moved then refuse_absent(user) end
    local key = task_key(user, id)
    local known = call('HMGET', key, 'stream_id', 'attempt', 'linked', 'canceling', 'limited', 'charged', 'ends', 'queued')
    if known[1] ~= stream_id or attempt_in(known[2]) ~= attempt or is_gone[key] then
      return already_done(user, id, stream_id, attempt, record) and 1 or whereabouts(user, id, worker)
    end
    stream = stream_key(lane, user)
    sizes[stream] = sizes[stream] or call('XLEN', stream)
    local settled, is_cut = settled_kind(kind, known[4]), false
    if known[3] then ask_for_permission(user, id, known[3]) end
    extras = known[8] and call('HMGET', key, 'unique', 'yielded') or PLAIN
    if settled ~= 'finished' then prove(settled, user, id, lane, delay_ms, known[3]) end
    if known[7] then endings().prove(user, id) end
    local is_weighed = bytes and HAS_BYTES[settled] and bytes.limit(user)
    if is_weighed then
      fit = fit or new_fitting()
      settled, record, error, pushed, is_cut = fit(user, settled, record, error, pushed, bytes.lift_running(user, id))
    end
    if pushed ~= '' then push(user, pushed) end
    local total = account(user, id, settled, cost, charge, run_ms, tonumber(known[6]))
    if known[5] then limiting().stop(known[5], user, id) end
    if governed and governed.ends_matter(governed.user(user)) and not reviewed[user] then
      reviewed[user] = true
      reviewed[#reviewed + 1] = user
    end
    local is_plain = not known[8] -- was only in its lane, and in one worker; what yields is not either: append.lua
    if extras[2] and (settled == 'finished' or settled == 'failed') then
      expire_chunks(user, id, settled == 'failed' and dead_letter_ttl_ms or ttl_ms)
    end
    local why = settled == 'canceled' and known[4] or error
    ends[settled](user, id, lane, stream_id, attempt, ttl_ms, delay_ms, record, why, known[3], known[7], is_cut, is_plain,
      key)
    if is_weighed then
      if settled == 'finished' then bytes.lay_result(user, id, #record) else bytes.lay_settled(user, id) end
    end
    if total then tally_service(user, wait_ms, run_ms, total) end
    if COUNTED[settled] then tally(user, COUNTED[settled]) end
    return 1, true
  end

  -- Of a suspect that has ended here: another one may come. One that is reported late, or again, may be out with others.
  local has_ended = {} -- by its place in the report
  local function let_others_come(suspect)
    --@fields SettledSuspect suspect: at alone
    call('ZREM', suspects_key, has_ended[at])
    if alone then new_room(worker, 0).close() end
  end

  local answers = {}
  if governed then nodes.read_ahead(users_of(outcomes)) end
  for at = 1, told do
    local is_done, answer, is_new = pcall(settle)
    if is_done then
      answers[at] = answer
      if suspects[1] and is_new then has_ended[at] = of_user .. ':' .. of_id end
    else
      answers[at] = damage().told(of_user, answer, of_id)
    end
  end

  -- What goes wrong with one user behind the outcomes is told behind the answers.
  local function attempt_to(act, ...)
    local is_done, failure = pcall(act, ...)
    if not is_done then answers[#answers + 1] = text_of(failure) end
    return is_done and failure
  end
  for _, suspect in ipairs(suspects) do
    --@fields SettledSuspect suspect: at
    if has_ended[at] then attempt_to(let_others_come, suspect) end
  end
  attempt_to(end_deliveries)
  attempt_to(note_kept)
  attempt_to(pass_on_outcomes, step_us, dead_letter_ttl_ms)
  for _, user in ipairs(reviewed) do
    if attempt_to(governed.freed, user) then woken[user] = (woken[user] or 0) + 1 end
  end
  if limited then attempt_to(limited.pass_on, woken) end
  for user, tasks in pairs(woken) do attempt_to(wake, user, tasks, claims and worker) end
  return answers
end

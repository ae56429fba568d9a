-- Batches: any number of tasks of one user, counted as they end. When all have, and nobody adds to it any more, its callbacks are
-- put in by the script in which the last of them ended.
-- batch:<u>:<b>        hash  state: open, closed, canceled or abandoned. total, finished, failed, canceled: of its tasks.
--                            on_complete, on_success: as `ends` has them, until they are put in. nonce: of the call that opened
--                            it; created, complete: ms; ttl_ms: after which one to which nobody adds is abandoned; keep_ms and
--                            dead_ms: how long it is kept when all have ended, and when some have failed
-- batch-tasks:<u>:<b>  set   its tasks that have not ended
-- batches:<u>          zset  open ones of a user → ms when they are abandoned
-- batches              zset  users with some → ms of the first one, or of the last turn of a user that has more

local function new_batches(endings_of_tasks)
  local batches = {}
  local USERS, OF_A_USER = 20, 10 -- that one call abandons
  local users_with_some = prefix .. 'batches'
  local function batch_key(user, batch) return prefix .. 'batch:' .. user .. ':' .. batch end
  local function tasks_key(user, batch) return prefix .. 'batch-tasks:' .. user .. ':' .. batch end
  local function open_key(user) return users_with_some .. ':' .. user end
  batches.tasks_key = tasks_key

  local function number_in(field) return tonumber(field or 0) end

  -- What its callbacks take leaves the count of bytes, or comes.
  local function weigh(user, batch, sign)
    if bytes then bytes.change_batch(user, batch, sign) end
  end

  local function forget_open(user, batch)
    if call('ZREM', open_key(user), batch) == 1 and call('EXISTS', open_key(user)) == 0 then call('ZREM', users_with_some, user) end
  end

  function batches.state(user, batch) return call('HGET', batch_key(user, batch), 'state') or nil end

  -- Reads what the end of one of its tasks writes.
  function batches.prove(user, batch)
    call('HLEN', batch_key(user, batch))
    call('SCARD', tasks_key(user, batch))
  end

  -- Whether more tasks may be added: by anybody while it is open, and once it is closed by its own tasks that have not ended.
  function batches.takes_more(user, batch, adder)
    local state = batches.state(user, batch)
    return state == 'open' or state == 'closed' and call('SISMEMBER', tasks_key(user, batch), adder) == 1
  end

  -- 'new', also by an earlier try of the same call, 'joined' where it is open already, or 'over'.
  function batches.open(user, batch, nonce, ttl_ms, keep_ms, dead_ms, on_complete, on_success)
    local key = batch_key(user, batch)
    local known = call('HMGET', key, 'nonce', 'state')
    if known[1] == nonce then return 'new' end
    if known[2] then return known[2] == 'open' and 'joined' or 'over' end
    call('ZADD', open_key(user), now + ttl_ms, batch)
    call('ZADD', users_with_some, 'LT', now + ttl_ms, user)
    call('HSET', key, 'state', 'open', 'nonce', nonce, 'created', now_text, 'ttl_ms', ttl_ms, 'keep_ms', keep_ms, 'dead_ms', dead_ms)
    if on_complete then call('HSET', key, 'on_complete', on_complete) end
    if on_success then call('HSET', key, 'on_success', on_success) end
    weigh(user, batch, 1)
    return 'new'
  end

  function batches.add(user, batch, id)
    local key = batch_key(user, batch)
    if call('SADD', tasks_key(user, batch), id) == 0 then return end
    call('HINCRBY', key, 'total', 1)
    local known = call('HMGET', key, 'state', 'ttl_ms')
    if known[1] == 'open' then call('ZADD', open_key(user), 'XX', 'GT', now + number_in(known[2]), batch) end
  end

  -- What its callbacks are told: models.BatchProgress.
  local function told_of(batch, known)
    return 'B' .. cmsgpack.pack({ batch, known[1], number_in(known[2]), number_in(known[3]), number_in(known[4]), number_in(known[5]),
      number_in(known[6]), number_in(known[7]) })
  end

  local function call_back(user, batch, kind, known, step_us)
    local packed = call('HGET', batch_key(user, batch), kind)
    if not packed then return 0 end
    call('HDEL', batch_key(user, batch), kind)
    return endings_of_tasks.put_all_in(user, batch, packed, told_of(batch, known), step_us)
  end

  -- Nobody adds to it any more, and all have ended. Returns how many tasks may be served now.
  local function complete(user, batch, step_us)
    local key = batch_key(user, batch)
    call('HSETNX', key, 'complete', now_text)
    local known = call('HMGET', key, 'state', 'total', 'finished', 'failed', 'canceled', 'created', 'complete', 'keep_ms', 'dead_ms')
    weigh(user, batch, -1)
    local queued = call_back(user, batch, 'on_complete', known, step_us)
    local failed, canceled = number_in(known[4]), number_in(known[5])
    if known[1] == 'closed' and failed + canceled == 0 then
      queued = queued + call_back(user, batch, 'on_success', known, step_us)
    end
    call('PEXPIRE', key, failed > 0 and known[9] or known[8])
    weigh(user, batch, 1)
    publish(user, 'batch:' .. batch, 'complete')
    return queued
  end

  -- Of one that is gone nothing comes.
  function batches.complete_if_over(user, batch, step_us)
    local state = batches.state(user, batch)
    if not state or state == 'open' or call('EXISTS', tasks_key(user, batch)) == 1 then return 0 end
    return complete(user, batch, step_us)
  end

  -- How one of its tasks ended: finished, failed or canceled. Returns how many tasks may be served now.
  function batches.note_end(user, batch, id, outcome, step_us)
    if call('SREM', tasks_key(user, batch), id) == 0 or not batches.state(user, batch) then return 0 end
    call('HINCRBY', batch_key(user, batch), outcome, 1)
    return batches.complete_if_over(user, batch, step_us)
  end

  -- One that had not ended is no task of it any more.
  function batches.drop(user, batch, id)
    if call('SREM', tasks_key(user, batch), id) == 1 and batches.state(user, batch) then
      call('HINCRBY', batch_key(user, batch), 'total', -1)
    end
  end

  -- Of a user that is erased: nobody adds to it any more, and its tasks are gone.
  function batches.erase_if_empty(user, batch)
    if batches.state(user, batch) == 'open' or call('EXISTS', tasks_key(user, batch)) == 1 then return end
    weigh(user, batch, -1)
    call('UNLINK', batch_key(user, batch))
  end

  -- A dead letter of it is brought back.
  function batches.note_requeue(user, batch, id)
    local key = batch_key(user, batch)
    if not batches.state(user, batch) or call('SADD', tasks_key(user, batch), id) == 0 then return end
    call('HINCRBY', key, 'failed', -1)
    weigh(user, batch, -1)
    call('PERSIST', key)
    weigh(user, batch, 1)
  end

  -- `state`: closed, canceled or abandoned. What is over stays as it is. Returns how many tasks may be served now.
  function batches.end_adding(user, batch, state, step_us)
    local key = batch_key(user, batch)
    local before = batches.state(user, batch)
    forget_open(user, batch)
    if before ~= 'open' and (state ~= 'canceled' or call('EXISTS', tasks_key(user, batch)) == 0) then return 0 end
    call('HSET', key, 'state', state)
    return batches.complete_if_over(user, batch, step_us)
  end

  local function abandon_some_of(user, step_us)
    local queued = 0
    for _, batch in ipairs(call('ZRANGEBYSCORE', open_key(user), '-inf', now, 'LIMIT', 0, OF_A_USER)) do
      queued = queued + batches.end_adding(user, batch, 'abandoned', step_us)
    end
    local first = call('ZRANGE', open_key(user), 0, 0, 'WITHSCORES')[2]
    if first then
      call('ZADD', users_with_some, math.max(now, first), user)
    else
      call('ZREM', users_with_some, user)
    end
    return queued
  end

  -- Those that were never closed, by turns of users. woken: user → tasks that may be served now.
  function batches.abandon(step_us, woken)
    for _, user in ipairs(call('ZRANGEBYSCORE', users_with_some, '-inf', now, 'LIMIT', 0, USERS)) do
      local is_done, queued = pcall(abandon_some_of, user, step_us)
      if is_done then
        if queued > 0 then woken[user] = (woken[user] or 0) + queued end
      else
        damage().note(user, queued)
        call('ZADD', users_with_some, damage().next_ms, user)
      end
    end
  end

  -- Of one that is gone.
  function batches.forget(user, batch)
    call('UNLINK', tasks_key(user, batch))
    forget_open(user, batch)
  end

  -- Where an open one belongs, and no other.
  function batches.list(user, batch, state)
    if state ~= 'open' then return forget_open(user, batch) end
    local ends_at = now + number_in(call('HGET', batch_key(user, batch), 'ttl_ms'))
    call('ZADD', open_key(user), ends_at, batch)
    call('ZADD', users_with_some, 'LT', ends_at, user)
  end

  -- Where what is counted says that all have ended, and nobody was told.
  function batches.is_over_untold(user, batch)
    local known = call('HMGET', batch_key(user, batch), 'state', 'complete', 'total', 'finished', 'failed', 'canceled')
    if known[1] == 'open' or known[2] or call('EXISTS', tasks_key(user, batch)) == 1 then return false end
    return number_in(known[3]) <= number_in(known[4]) + number_in(known[5]) + number_in(known[6])
  end

  -- Open ones of a user that is erased. Returns how many.
  function batches.purge(user, most)
    local some = call('ZRANGE', open_key(user), 0, most - 1)
    for _, batch in ipairs(some) do
      weigh(user, batch, -1)
      call('UNLINK', batch_key(user, batch), tasks_key(user, batch))
      forget_open(user, batch)
    end
    return #some
  end

  return batches
end

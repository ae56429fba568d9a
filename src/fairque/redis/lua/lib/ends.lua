-- What comes of the end of a task, beside what is told to those that depend on it: its callbacks are put in, past all quotas, and
-- its batch counts it, in the script that ends it. A task with either, or with children, has the fields `linked` and `ends`, so
-- that the others pay nothing at their end.
-- ends:<u>:<id>  string  {life, {{kind, priority, when, body, what is kept for its own end or ''} ...}, batch or ''}: what
--                        fails may be requeued, which is another life
--@include base
--@include state
--@include fair
--@include place
--@include task

local function new_endings()
  local it = {}
  local KIND_OF = { finished = 'on_success', failed = 'on_failure' }
  local TOO_LARGE = 'not told: too large for a message'

  -- Made by the first that needs them.
  local known_batches
  function it.batches()
    if known_batches then return known_batches end
    --@include batches
    known_batches = new_batches(it)
    return known_batches
  end

  -- The callbacks of a call, as they are kept.
  function it.pack(callbacks, batch)
    local kept = {}
    for at, callback in ipairs(callbacks) do
      --@fields Callback callback: kind priority when body after
      kept[at] = { kind, priority, when, body, after[1] and it.pack(after) or '' }
    end
    return cmsgpack.pack({ 1, kept, batch or '' })
  end

  local function write(user, id, packed, ...)
    call('SET', ends_key(user, id), packed, ...)
    if bytes then bytes.change_ends(user, id, 1) end
  end

  -- By the fields whoever ends the task knows that there is something.
  function it.mark(user, id)
    call('HSETNX', task_key(user, id), 'linked', 1)
    call('HSET', task_key(user, id), 'ends', 1)
  end

  function it.keep(user, id, packed)
    it.mark(user, id)
    write(user, id, packed)
  end

  function it.prove_places(user)
    choice.know(user)
    for _, where in ipairs({ 'critical', 'normal', 'scheduled' }) do call('ZCARD', place_key(where, user)) end
  end

  -- Reads each key that callbacks of the task would be written to: one of another type shows before it ends.
  function it.prove(user, id)
    call('UNLINK', children_key('', '')) -- nobody's, so it changes nothing: is it permitted?
    local packed = call('GET', ends_key(user, id))
    if not packed then return end
    local batch = cmsgpack.unpack(packed)[3]
    if batch ~= '' then it.batches().prove(user, batch) end
    it.prove_places(user)
  end

  -- Of message.Record, without what may be large.
  local function shortened(record)
    local first = { cmsgpack.unpack_limit(record, 6, 11) }
    local name, attempt, queued, started, run, worker = unpack(first, 2, 7)
    local kind, type_name = nil, ''
    if string.sub(record, 10, 10) ~= 'F' then
      local all = cmsgpack.unpack(string.sub(record, 11))
      kind, type_name = all[9], string.sub(tostring(all[10]), 1, 200)
    end
    return string.sub(record, 1, 10) .. '\156' .. cmsgpack.pack(name, attempt, queued, started, run, worker, nil, false, kind,
      type_name, TOO_LARGE, '')
  end

  -- The message of a callback, an array of four, with two more: whose end it is, and the record of that.
  local function told(body, id, record)
    if string.byte(body, 19) ~= 148 then return body end
    return string.sub(body, 1, 18) .. '\150' .. string.sub(body, 20) .. cmsgpack.pack(id) .. '\198'
      .. struct.pack('>I4', #record) .. record
  end

  local function message_of(user, id, body)
    local record = call('GET', result_key(user, id)) or ''
    local made, most = told(body, id, record), tonumber(call('HGET', prefix .. 'settings', 'max_message_bytes'))
    return most and #made > most and told(body, id, shortened(record)) or made
  end

  -- One that is taken is no reason to do nothing.
  local function free_id(user, id)
    if call('EXISTS', body_key(user, id), result_key(user, id)) == 0 then return id end
    return id .. '-' .. string.format('%d', next_arrival())
  end

  -- `of`: the task, or batch, whose end it is. Returns whether it may be served now.
  local function put_in(user, id, of, callback, body, step_us)
    local _, priority, when, _, after = unpack(callback)
    local due = due_at(when)
    call('SET', body_key(user, id), body)
    call('HSET', task_key(user, id), 'parent', of)
    if bytes then bytes.change(user, 'body:' .. id, #body) end
    if after ~= '' then it.keep(user, id, after) end
    if call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0 then call('HSET', task_key(user, id), 'linked', 1) end
    if due > now then
      call('HSET', task_key(user, id), 'state', 'scheduled', 'priority', priority, 'enqueued', now)
      schedule(user, id, due)
      return false
    end
    choice.know(user)
    return place(user, id, score_of(priority, step_us))
  end

  -- Takes what is kept for this end: what failed has it for another life as well, for `ttl` ms. Nil: nothing.
  local function take(user, id, outcome, ttl)
    local packed = call('GET', ends_key(user, id))
    if not packed then return nil end
    local life, callbacks, batch = unpack(cmsgpack.unpack(packed))
    if bytes then bytes.change_ends(user, id, -1) end
    if outcome == 'failed' then
      write(user, id, cmsgpack.pack({ life + 1, callbacks, batch }), 'PX', ttl)
    else
      call('DEL', ends_key(user, id))
    end
    return life, callbacks, batch
  end

  -- A second one of its kind, and one of a second life, has a number.
  local function names_of(id, life, callbacks)
    local of_kind, names, seen = {}, {}, {}
    for _, callback in ipairs(callbacks) do of_kind[callback[1]] = (of_kind[callback[1]] or 0) + 1 end
    for at, callback in ipairs(callbacks) do
      local kind = callback[1]
      seen[kind] = (seen[kind] or 0) + 1
      local number = (life - 1) * of_kind[kind] + seen[kind]
      names[at] = id .. '.' .. kind .. (number > 1 and string.format('-%d', number) or '')
    end
    return names
  end

  -- `outcome`: finished, failed or canceled; of others nothing comes. Returns how many may be served now.
  function it.call_back(user, id, outcome, step_us, ttl)
    if outcome ~= 'finished' and outcome ~= 'failed' and outcome ~= 'canceled' then return 0 end
    if outcome == 'failed' then call('PEXPIRE', children_key(user, id), ttl) else call('UNLINK', children_key(user, id)) end
    local life, callbacks, batch = take(user, id, outcome, ttl)
    if not life then return 0 end
    local queued, names = 0, names_of(id, life, callbacks)
    for at, callback in ipairs(callbacks) do
      if callback[1] == 'on_end' or callback[1] == KIND_OF[outcome] then
        local body = message_of(user, id, callback[4])
        if put_in(user, free_id(user, names[at]), id, callback, body, step_us) then queued = queued + 1 end
      end
    end
    return queued + (batch ~= '' and it.batches().note_end(user, batch, id, outcome, step_us) or 0)
  end

  -- Callbacks of a batch; `record` is what they are told of it. Returns how many may be served now.
  function it.put_all_in(user, batch, packed, record, step_us)
    local queued, life, callbacks = 0, unpack(cmsgpack.unpack(packed))
    local names = names_of(batch, life, callbacks)
    for at, callback in ipairs(callbacks) do
      local body = told(callback[4], batch, record)
      if put_in(user, free_id(user, names[at]), batch, callback, body, step_us) then queued = queued + 1 end
    end
    return queued
  end

  -- Of a task that is erased, or gives its place to another: nobody is called, and nothing is counted. Returns its batch.
  function it.drop(user, id)
    local packed = call('GET', ends_key(user, id))
    if not packed then return end
    local batch = cmsgpack.unpack(packed)[3]
    if batch ~= '' then it.batches().drop(user, batch, id) end
    if bytes then bytes.change_ends(user, id, -1) end
    call('DEL', ends_key(user, id))
    return batch ~= '' and batch or nil
  end

  -- A dead letter is brought back.
  function it.note_requeue(user, id)
    local packed = call('GET', ends_key(user, id))
    local batch = packed and cmsgpack.unpack(packed)[3] or ''
    if batch ~= '' then it.batches().note_requeue(user, batch, id) end
  end

  return it
end

local known_endings
local function endings()
  known_endings = known_endings or new_endings()
  return known_endings
end

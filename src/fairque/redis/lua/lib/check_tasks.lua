-- Tasks: each is in exactly one place, and what its keys say of it is where it is.
--@include base
--@include state
--@include task
--@include letter
--@include message
--@include fair
--@include place
--@include wake
--@include limits
--@include canceled
--@include depend
--@include expiry
--@include pointers
--@include collect
--@include doctor

local function add_task_checks(doctor, dead_letter_ttl_ms, priority_step_ms)
  local checks, wrong = doctor.checks, doctor.wrong
  local SORTED = { 'critical', 'normal', 'held', 'scheduled', 'dead' }
  local STATE_IN = { critical = 'queued', normal = 'queued', held = 'queued', scheduled = 'scheduled',
    deferred = 'deferred', dead = 'failed', ['critical-stream'] = 'started', ['normal-stream'] = 'started' }
  local LETTERS = { F = 'finished', X = 'failed', C = 'canceled' }
  local MOST_DELIVERIES = 1000 -- looked through for a task whose fields are gone

  local function fields_of(user, id)
    local flat, known = call('HGETALL', task_key(user, id)), {}
    for at = 1, #flat, 2 do known[flat[at]] = flat[at + 1] end
    return known
  end

  local function delete(user, id, ...)
    if bytes then bytes.lift(user, id) end
    call('DEL', ...)
    if bytes then bytes.lay(user, id) end
  end

  local function holds(spot, user, id)
    if spot == 'deferred' then return call('SISMEMBER', place_key(spot, user), id) == 1 end
    return call('ZSCORE', place_key(spot, user), id)
  end

  local function delivery(lane, user, stream_id)
    local entry = call('XRANGE', stream_key(lane, user), stream_id, stream_id)[1]
    return entry and entry[2][2]
  end

  -- The stream id of its delivery in a lane.
  local function delivery_of(lane, user, id, known)
    local told = known.stream_id
    if told and told ~= '' then return delivery(lane, user, told) == id and told end
    if known.state then return nil end
    for _, entry in ipairs(call('XRANGE', stream_key(lane, user), '-', '+', 'COUNT', MOST_DELIVERIES)) do
      if entry[2][2] == id then return entry[1] end
    end
  end

  local function places_with(user, id, known)
    local found = {}
    for _, spot in ipairs(SORTED) do
      if holds(spot, user, id) then found[#found + 1] = spot end
    end
    if holds('deferred', user, id) then found[#found + 1] = 'deferred' end
    for _, lane in ipairs({ 'critical', 'normal' }) do
      if delivery_of(lane, user, id, known) then found[#found + 1] = lane .. '-stream' end
    end
    return found
  end

  local function lane_of(spot) return string.match(spot, '^(%a+)%-stream$') end

  local function remove_delivery(lane, user, stream_id)
    local stream = stream_key(lane, user)
    redis.pcall('XACK', stream, 'workers', stream_id)
    call('XDEL', stream, stream_id)
    if call('XLEN', stream) > 0 then return end
    call('DEL', stream)
    call('ZREM', leases_key, lane .. ':' .. user)
  end

  -- Out of a place that it should not be in.
  local function remove_from(spot, user, id, known)
    local lane = lane_of(spot)
    if lane then
      remove_delivery(lane, user, delivery_of(lane, user, id, known))
      count('started', -1)
    elseif spot == 'held' then
      new_limits().drop(user, id, known.held or '')
      if known.lane then count(known.lane, -1) end
    elseif spot == 'deferred' then
      depend().leave_deferred(user, id)
    elseif spot == 'dead' then
      unlist_dead(user, id)
    else
      call('ZREM', place_key(spot, user), id)
      count(spot, -1)
      if spot ~= 'scheduled' then retire(user) end
    end
  end

  -- Its worker, should it live, goes on; else the delivery is stolen, as any other.
  local function deliver_again(user, id, known)
    local stream, stream_id, lane = stream_key(known.lane, user), known.stream_id, known.lane
    redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
    local added = redis.pcall('XADD', stream, stream_id, 'id', id)
    if type(added) == 'table' then return nil end -- others were delivered since
    call('XCLAIM', stream, 'workers', known.worker or 'doctor', 0, stream_id, 'FORCE', 'JUSTID')
    call('ZADD', leases_key, 'NX', now, lane .. ':' .. user)
    return 'in the hands of its worker again'
  end

  local function queue_again(user, id, known)
    local lane, score = known.lane, known.score
    if not score then
      local head = call('GETRANGE', body_key(user, id), 0, 17)
      lane, score = score_of(tonumber(known.priority) or string.byte(head, 18) or 3, priority_step_ms * 1000)
    end
    if next(known) then
      call('HSET', task_key(user, id), 'state', 'queued', 'stream_id', '')
      call('HDEL', task_key(user, id), 'held', 'keys', 'held_since')
      if has_limits then new_limits().drop(user, id) end
    end
    if place(user, id, lane, score) then wake(user, 1) end
    if known.state == 'started' then count('started', -1) else count(lane, -1) end -- it is counted already
    return 'in its lane again'
  end

  local function list_kind_again(user, id, at)
    call('HDEL', task_key(user, id), 'dead_apart')
    local kind = list_by_kind(user, id, call('LINDEX', errors_key(user, id), -1) or '', string.format('%d', at), dead_letter_ttl_ms)
    if call('EXISTS', task_key(user, id)) == 1 then call('HSET', task_key(user, id), 'dead_kind', kind) end
  end

  local function relist(user, id, known)
    call('ZADD', place_key('dead', user), known.ended or now, id)
    call('ZADD', prefix .. 'dead', known.ended or now, user .. ':' .. id)
    call('PEXPIRE', place_key('dead', user), dead_letter_ttl_ms)
    call('PEXPIRE', prefix .. 'dead', dead_letter_ttl_ms)
    list_kind_again(user, id, known.ended or now)
    return 'a dead letter again'
  end

  local function place_again(user, id, known)
    if known.state == 'failed' then return relist(user, id, known) end
    if known.state == 'deferred' then
      call('SADD', place_key('deferred', user), id)
      return 'waits for others again'
    end
    if known.state == 'scheduled' then
      local due = tonumber(known.due or 0)
      schedule(user, id, due > now and due or now)
      count('scheduled', -1)
      return due > now and 'scheduled again' or 'due now, as its time is lost'
    end
    return known.state == 'started' and known.lane and deliver_again(user, id, known) or queue_again(user, id, known)
  end

  -- A task of which nothing can be run: whoever waits for it is told.
  local function give_up(user, id)
    end_canceled(user, id, 'its message was lost', dead_letter_ttl_ms)
    return 'ended as canceled'
  end

  local function is_leftover(user, id)
    local record = call('GETRANGE', result_key(user, id), 0, 8)
    return record ~= '' and record == call('GETRANGE', body_key(user, id), 0, 8)
  end

  local function check_no_place(user, id, known)
    local name = 'body:' .. user .. ':' .. id
    if known.state ~= 'failed' and is_leftover(user, id) then
      return wrong('leftover', name, 'its task has ended', function()
        delete(user, id, keys_of_task(user, id))
        return 'deleted'
      end)
    end
    wrong('no-place', name, 'the task is ' .. (known.state or 'queued') .. ', and in no place', function()
      return place_again(user, id, known)
    end)
  end

  local function best_of(places, known)
    for _, spot in ipairs(places) do
      if STATE_IN[spot] == (known.state or 'queued') then return spot end
    end
    return places[1]
  end

  local function check_many_places(user, id, known, places)
    wrong('many-places', 'task:' .. user .. ':' .. id, table.concat(places, ' and '), function()
      local kept = best_of(places, known)
      for _, spot in ipairs(places) do
        if spot ~= kept then remove_from(spot, user, id, known) end
      end
      return 'only in ' .. kept
    end)
  end

  local function restore_state(user, id, spot)
    local key, lane = task_key(user, id), lane_of(spot)
    call('HSET', key, 'state', STATE_IN[spot])
    if spot == 'dead' then call('HSETNX', key, 'ended', call('ZSCORE', place_key('dead', user), id)) end
    if lane then call('HSETNX', key, 'lane', lane) end
    return 'as its place says'
  end

  -- What it costs when a task is done as a whole: TTLs of its keys.
  local function check_expiry(user, id, is_dead)
    for _, kind in ipairs({ 'task', 'body', 'errors', 'chunks', 'ends', 'children' }) do
      local name = kind .. ':' .. user .. ':' .. id
      local left = call('PTTL', prefix .. name)
      if is_dead and left == -1 then
        wrong('no-expiry', name, 'stays for ever', function()
          call('PEXPIRE', prefix .. name, dead_letter_ttl_ms)
          return 'expires as a dead letter does'
        end)
      elseif not is_dead and left >= 0 then
        wrong('expires', name, 'vanishes in ' .. string.format('%d', left) .. ' ms', function()
          call('PERSIST', prefix .. name)
          return 'stays'
        end)
      end
    end
  end

  local function check_held(user, id, known)
    local name = known.held or ''
    if call('ZSCORE', place_key('held', user) .. ':' .. name, id) then return end
    wrong('held-for-nobody', 'held:' .. user, 'is in no line of a task name', function()
      call('ZREM', place_key('held', user), id)
      queue_again(user, id, known)
      return 'in its lane again'
    end)
  end

  local function check_limited(user, id, known)
    if not known.limited then return end
    for _, k in ipairs(new_limits().keys_in(known.limited)) do
      if call('SISMEMBER', prefix .. 'running:' .. k, user .. ':' .. id) == 0 then
        wrong('uncounted-run', 'running:' .. k, 'a task that runs does not count for its limit', function()
          call('SADD', prefix .. 'running:' .. k, user .. ':' .. id)
          return 'counted'
        end)
      end
    end
  end

  -- It has not begun, and was not given back by a worker that stopped.
  local function check_expiring(user, id, known)
    if tonumber(known.attempt or 0) > 0 or known.paid or call('ZSCORE', place_key('expiring', user), id) then return end
    wrong('not-due', 'expiring:' .. user, 'a task that expires is not looked for', function()
      deadlines.note(user, id, known.expires)
      return 'looked at in time'
    end)
  end

  local function check_key(user, id, known)
    local hash = string.match(known.unique, ' (%S+) ')
    if not hash or pointers.holder(user, hash) then return end
    wrong('lost-key', 'unique:' .. user .. ':' .. hash, 'the task is to be alone under this key', function()
      pointers.point(user, hash, id)
      return 'told anew'
    end)
  end

  -- A key under which a task is alone.
  function checks.unique(user, _, hash)
    if call('EXISTS', prefix .. 'unique:' .. user .. ':' .. hash) == 0 or pointers.holder(user, hash) then return end
    wrong('leftover', 'unique:' .. user .. ':' .. hash, 'the task that had the key does not have it any more', function()
      call('DEL', prefix .. 'unique:' .. user .. ':' .. hash)
      return 'deleted'
    end)
  end

  function checks.expiring(user, id)
    if not call('ZSCORE', place_key('expiring', user), id) then return end
    local known = call('HMGET', task_key(user, id), 'expires', 'state')
    if known[1] and known[2] ~= 'started' and known[2] ~= 'failed' then return end
    wrong('due-without-tasks', 'expiring:' .. user, 'the task has begun, or is gone', function()
      deadlines.forget(user, id)
      return 'removed'
    end)
  end

  local function check_one_place(user, id, known, spot)
    local told, is_dead = known.state, spot == 'dead'
    local name = 'task:' .. user .. ':' .. id
    if told ~= STATE_IN[spot] and (told or STATE_IN[spot] ~= 'queued') then
      wrong('wrong-state', name, (told or 'nothing is') .. ' told, it is in ' .. spot, function()
        return restore_state(user, id, spot)
      end)
    end
    if not is_dead and call('EXISTS', result_key(user, id)) == 1 then
      wrong('stale-result', 'result:' .. user .. ':' .. id, 'the task has not ended', function()
        delete(user, id, result_key(user, id))
        return 'deleted'
      end)
    end
    check_expiry(user, id, is_dead)
    if spot == 'held' then check_held(user, id, known) end
    if known.unique and not is_dead then check_key(user, id, known) end
    if known.expires and not is_dead and not lane_of(spot) then check_expiring(user, id, known) end
    if lane_of(spot) then check_limited(user, id, known) end
    if spot == 'deferred' and call('EXISTS', needs_key(user, id)) == 0 then
      wrong('waits-for-nothing', 'needs:' .. user .. ':' .. id, 'nothing is known of what it waits for')
    end
  end

  -- A deferred task of which only its message says what it waits for: those that have ended are found by the next look.
  function checks.rewire(user, id, ...)
    if call('EXISTS', needs_key(user, id)) == 1 or not holds('deferred', user, id) then return end
    local dependencies = { ... }
    wrong('waits-for-nothing', 'needs:' .. user .. ':' .. id, 'nothing is known of what it waits for', function()
      call('HDEL', task_key(user, id), 'waits')
      for _, dependency in ipairs(dependencies) do
        call('SADD', needs_key(user, id), dependency)
        depend().link(user, id, dependency)
      end
      if #dependencies > 0 then return 'waits for what its message says' end
      call('SREM', place_key('deferred', user), id)
      return queue_again(user, id, fields_of(user, id))
    end)
  end

  -- A message that is there.
  function checks.task(user, id)
    if call('EXISTS', body_key(user, id)) == 0 then return end
    local known = fields_of(user, id)
    local places = places_with(user, id, known)
    if #places == 0 then
      check_no_place(user, id, known)
    elseif #places > 1 then
      check_many_places(user, id, known, places)
    else
      check_one_place(user, id, known, places[1])
    end
  end

  -- One that is to run together with others, and has not begun.
  local function check_group(user, id)
    local known = call('HMGET', task_key(user, id), 'collect', 'attempt', 'enqueued')
    local group = known[1]
    if not group or known[2] or not collecting().lacks(user, id, group, tonumber(known[3] or 0)) then return end
    wrong('lost-group', 'collected:' .. user .. ':' .. group, id .. ' would run without those that it is to run with', function()
      collecting().add(user, id, group)
      return 'runs with them'
    end)
  end

  -- A task in a place.
  function checks.seat(user, id, spot)
    if spot == 'scheduled' and holds(spot, user, id) then check_group(user, id) end
    if not holds(spot, user, id) or call('EXISTS', body_key(user, id)) == 1 then return end
    wrong('lost-message', spot .. ':' .. user, 'the message of the task is gone', function()
      remove_from(spot, user, id, fields_of(user, id))
      return give_up(user, id)
    end)
  end

  -- A dead letter, from either list. Those that are over are dropped by the next failure.
  function checks.letter(user, id)
    local own, of_all = call('ZSCORE', place_key('dead', user), id), call('ZSCORE', prefix .. 'dead', user .. ':' .. id)
    local at = own or of_all
    if not at or at + dead_letter_ttl_ms <= now then return end
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('lost-message', 'dead:' .. user, 'the message of the dead letter is gone', function()
        unlist_dead(user, id)
        delete(user, id, keys_of_task(user, id))
        return 'no dead letter any more'
      end)
    end
    if call('HEXISTS', task_key(user, id), 'linked') == 1 and not depend().lapses(user, id) then
      wrong('unlisted-end', 'lapsing:' .. user, 'a dead letter that others depend on, or that uses others, would not be given up', function()
        depend().lapse_at(user, id, at + dead_letter_ttl_ms)
        return 'listed'
      end)
    end
    local known = call('HMGET', task_key(user, id), 'dead_kind', 'dead_apart')
    local kind = known[1] or ''
    local lacks = kind ~= '' and (not call('ZSCORE', letters_key(user, kind), id) and user
      or not known[2] and not call('ZSCORE', letters_key('*', kind), user .. ':' .. id) and '*')
    if lacks then
      wrong('half-a-letter', letters_name(lacks, kind), 'the dead letter is not among those of its kind', function()
        list_kind_again(user, id, at)
        return 'listed'
      end)
    end
    if own and of_all then return end
    wrong('half-a-letter', own and 'dead' or 'dead:' .. user, 'the dead letter is in one list only', function()
      return relist(user, id, { ended = at })
    end)
  end

  -- Of a list by kind. `whose`: the user, or `*`.
  function checks.of_kind(user, id, kind, whose)
    local member = whose == '*' and user .. ':' .. id or id
    local at = call('ZSCORE', letters_key(whose, kind), member)
    if not at or at + dead_letter_ttl_ms <= now or call('ZSCORE', place_key('dead', user), id) then return end
    wrong('half-a-letter', letters_name(whose, kind), 'listed by its kind, and no dead letter', function()
      take_from(whose, kind, member)
      return 'removed'
    end)
  end

  function checks.kind_listed(whose, _, kind)
    local last = call('ZRANGE', letters_key(whose, kind), -1, -1, 'WITHSCORES')[2]
    if not last or call('ZSCORE', kinds_key(whose), kind) then return end
    wrong('half-a-letter', 'dead-kinds:' .. whose, 'the kind is not listed', function()
      call('ZADD', kinds_key(whose), last, kind)
      call('PEXPIRE', kinds_key(whose), dead_letter_ttl_ms)
      return 'listed'
    end)
  end

  -- What is kept of a task beside its message.
  function checks.leftover(user, id, kind)
    local name = kind .. ':' .. user .. ':' .. id
    if call('EXISTS', prefix .. name) == 0 or call('EXISTS', body_key(user, id)) == 1 then return end
    if kind == 'task' then
      local known = fields_of(user, id)
      if known.linked and next(known, next(known)) == nil then return end -- others depend on it
      if #places_with(user, id, known) > 0 then return end -- told of there
    end
    wrong('leftover', name, 'the message of the task is gone', function()
      local linked = kind == 'task' and call('HGET', task_key(user, id), 'linked')
      delete(user, id, prefix .. name)
      if linked then call('HSET', task_key(user, id), 'linked', linked) end
      return 'deleted'
    end)
  end

  -- What a task has yielded goes with its result.
  function checks.chunks(user, id)
    local key = chunks_key(user, id)
    if call('PTTL', key) ~= -1 or call('EXISTS', body_key(user, id)) == 1 then return end
    wrong('leftover', 'chunks:' .. user .. ':' .. id, 'its task has ended', function()
      delete(user, id, key)
      return 'deleted'
    end)
  end

  -- What a dead letter keeps for another life goes with it.
  local function call_back_late(user, id)
    if call('PTTL', ends_key(user, id)) >= 0 then
      if bytes then bytes.change_ends(user, id, -1) end
      call('DEL', ends_key(user, id))
      return 'deleted'
    end
    if call('EXISTS', result_key(user, id)) == 0 then give_up(user, id) end
    announce(user, id, LETTERS[call('GETRANGE', result_key(user, id), 9, 9)] or 'canceled', true)
    depend().call_back(priority_step_ms * 1000, dead_letter_ttl_ms)
    return 'its callbacks are put in'
  end

  -- What is kept for the end of a task.
  function checks.ends(user, id)
    if call('EXISTS', ends_key(user, id)) == 0 then return end
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('leftover', 'ends:' .. user .. ':' .. id, 'the task has ended', function() return call_back_late(user, id) end)
    end
    local marks = call('HMGET', task_key(user, id), 'linked', 'ends')
    if marks[1] and marks[2] then return end
    wrong('unmarked', 'task:' .. user .. ':' .. id, 'its callbacks would not be put in', function()
      endings().mark(user, id)
      return 'marked'
    end)
  end

  local function restore_fields(lane, user, stream_id, id)
    local pending = redis.pcall('XPENDING', stream_key(lane, user), 'workers', stream_id, stream_id, 1)[1]
    local ms = string.match(stream_id, '^%d+')
    call('HSET', task_key(user, id), 'state', 'started', 'lane', lane, 'score', ms * 1000, 'stream_id', stream_id, 'worker',
      pending and pending[2] or '', 'started', ms)
    call('HSETNX', task_key(user, id), 'attempt', 1)
    return 'told anew, as its first attempt'
  end

  local function check_fields(lane, user, stream_id, id)
    local known = fields_of(user, id)
    if known.stream_id == stream_id and known.state == 'started' then return true end
    local name = 'task:' .. user .. ':' .. id
    if not known.state and #places_with(user, id, known) == 1 then
      wrong('lost-fields', name, 'the task runs, and nothing is known of it', function()
        return restore_fields(lane, user, stream_id, id)
      end)
      return true
    end
    wrong('stale-delivery', lane .. '-stream:' .. user, 'the task is elsewhere', function()
      remove_delivery(lane, user, stream_id)
      count('started', -1)
      return 'removed'
    end)
  end

  -- An entry of a stream.
  function checks.delivery(user, id, lane, stream_id)
    local stream = stream_key(lane, user)
    if delivery(lane, user, stream_id) ~= id then return end
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('lost-message', lane .. '-stream:' .. user, 'the message of the task is gone', function()
        local known = fields_of(user, id)
        remove_delivery(lane, user, stream_id)
        count('started', -1)
        if known.limited then new_limits().stop(known.limited, user, id) end
        return give_up(user, id)
      end)
    end
    if not check_fields(lane, user, stream_id, id) then return end
    local pending = redis.pcall('XPENDING', stream, 'workers', stream_id, stream_id, 1)
    if not pending.err and pending[1] then return end
    wrong('nobodys-delivery', lane .. '-stream:' .. user, 'no worker has the task, and none may steal it', function()
      redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0')
      call('XCLAIM', stream, 'workers', call('HGET', task_key(user, id), 'worker') or 'doctor', 0, stream_id, 'FORCE', 'JUSTID')
      call('ZADD', leases_key, now, lane .. ':' .. user)
      return 'in the hands of its worker again'
    end)
  end
end

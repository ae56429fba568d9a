-- One task from its lane into the hands of a worker.
--@include base
--@include state
--@include task
--@include message
--@include limits
--@include work
--@include in_group
--@include history
--@include canceled
--@include expiry
--@include pointers
--@include charging
--@include hunt
--@include collect

local function new_delivering(claim, work)
  --@fields Claim claim: worker lease_ms max_message_bytes dead_letter_ttl_ms fairness priority_step_ms
  local it = {}
  local charging = fairness == 'time' and new_charging() or nil

  -- What this call knows of the users it serves. critical, normal: how many wait there, false until the first is taken.
  local serving = {}
  function it.knowledge(user)
    local known = serving[user]
    if not known then
      known = { critical = false, normal = false, expiring = has_expiring and deadlines.concerns(user) }
      serving[user] = known
    end
    return known
  end

  -- What was popped and is not handed over: put back if something fails before it is.
  local hand = {}
  local function hold(user, lane, id, score)
    hand.user, hand.lane, hand.id, hand.score = user, lane, id, score
    hand.stream_id, hand.new_fields, hand.counts = nil, nil, nil
  end

  function it.undo()
    if hand.id then damage().put_back(hand, limited) end
    serving = {}
  end

  -- The first delivery of a lane brings a place among the leases, and a stream.
  local function begin_stream(stream, lane, user)
    local member, look = lane .. ':' .. user, now + QUIET_LEASES * lease_ms
    if call('ZADD', leases_key, 'NX', look, member) == 0 then return end
    local made = redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
    if made.err and not string.find(made.err, '^BUSYGROUP') then
      call('ZREM', leases_key, member)
      error(made, 0)
    end
    if has_assigned then assignments.note_lease(member, user, look) end
  end

  -- Into the stream, and into this worker's hands: FORCE delivers an entry that no consumer has read.
  local function append(lane, user, id, known)
    local stream = stream_key(lane, user)
    if not known[stream] then
      begin_stream(stream, lane, user)
      known[stream] = true
    end
    local stream_id = call('XADD', stream, '*', 'id', id)
    hand.stream_id = stream_id
    if redis.pcall('XCLAIM', stream, 'workers', worker, '0', stream_id, 'FORCE', 'JUSTID').err then
      in_group(user, stream, 'XCLAIM', worker, '0', stream_id, 'FORCE', 'JUSTID')
    end
    return stream_id
  end

  -- It was taken out of its lane too late to begin.
  local function expire(user, id, lane)
    count(lane, -1)
    if limited then limited.drop(user, id) end
    end_canceled(user, id, 'expired', dead_letter_ttl_ms)
    hand.id = nil
    work.moved = work.moved + 1
  end

  -- Into the hands of the worker. Returns what it costs, and whether it was let in; third: its group, where it has one.
  local function hand_over(user, id, lane, score, body, limits, known, is_over, follows)
    local key, cost, history = task_key(user, id), cost_of(body), ''
    local stream_id = append(lane, user, id, known)
    local attempt = 1 -- for which a task has no field
    local new_fields = call('HSET', key, 'state', 'started', 'lane', lane, 'score', score, 'stream_id', stream_id,
      'worker', worker, 'started', now_text)
    hand.new_fields = new_fields
    local was_let_in = limits and limited.start(limits, user, id)
    local paid, group = false, nil
    if new_fields < 6 then -- it was deferred, scheduled, retried, released, held or watched before
      local before = call('HMGET', key, 'failures', 'lost', 'returned', 'since', 'queued', 'paid', 'watched', 'charged',
        'charged_before', 'unique', 'snoozed', 'collect', 'attempt')
      if before[13] then
        attempt = call('HINCRBY', key, 'attempt', 1)
        hand.counts = true
      end
      if before[10] then pointers.begin(user, id, before[10]) end
      if before[7] then publish(user, id, 'started') end
      local told = { failures = before[1], returned = before[3], since = before[4], queued = before[5],
        snoozed = before[11] }
      history, group = history_of(told, before[2], false, follows), before[12]
      if charging then charging.interrupt(user, id, before[8], before[9]) end
      if before[6] then
        call('HDEL', key, 'paid')
        paid = not charging
      end
    end
    if charging and not paid then cost = charging.begin(user, id, name_in(body), cost, lease_ms) end
    if known.expiring and is_over == false then deadlines.forget(user, id) end
    work.note(user, id, lane, stream_id, attempt, score, history, body, follows)
    hand.id = nil
    return paid and 0 or cost, was_let_in, group
  end

  -- Those that are to run with it, wherever they wait: one service, which costs what all of them do.
  local function take_along(user, first, group, name, known)
    local total = 0
    for _, other in ipairs(collecting().others(user, first, group, name)) do
      local id, state = other[1], other[2]
      local is_over = known.expiring and deadlines.is_over(user, id)
      local body = not is_over and work.has_room_for_bytes() and load_body(user, id, max_message_bytes)
      local limits = body and limited and limited.of(user, body)
      if body and string.byte(body) == 1 and not (limits and limited.must_wait(limits, user, id)) then
        local fields = call('HMGET', task_key(user, id), 'priority', 'lane', 'score')
        local lane, score = fields[2], fields[3]
        if not score then
          lane, score = score_of(tonumber(fields[1] or 3), priority_step_ms * 1000)
          score = string.format('%.0f', score)
        end
        hold(user, lane, id, score)
        if state == 'scheduled' then
          collecting().unschedule(user, id)
        else
          for _, each in ipairs({ 'critical', 'normal' }) do
            local removed = call('ZREM', place_key(each, user), id)
            count(each, -removed)
            known[each] = known[each] - removed
          end
        end
        count('started', 1)
        total = total + hand_over(user, id, lane, score, body, limits, known, is_over, true)
      else
        collecting().leave(user, id)
      end
    end
    return total
  end

  -- The first task of the user comes into the hand, out of its lane: returns that, the id and the score. Nil: it has none.
  local function pop(user, known)
    if known.normal then
      local lane = known.critical > 0 and 'critical' or 'normal'
      local popped = call('ZPOPMIN', place_key(lane, user))
      known[lane] = known[lane] - 1
      hold(user, lane, popped[1], popped[2])
      return lane, popped[1], popped[2]
    end
    local critical, normal = place_key('critical', user), place_key('normal', user)
    local popped = call('ZMPOP', '2', critical, normal, 'MIN')
    if not popped then
      known.critical, known.normal = 0, 0
      return nil
    end
    local lane, first = popped[1] == critical and 'critical' or 'normal', popped[2][1]
    hold(user, lane, first[1], first[2])
    known.critical, known.normal = lane == 'critical' and call('ZCARD', critical) or 0, call('ZCARD', normal)
    return lane, first[1], first[2]
  end

  -- Takes the first task of the user; returns what it costs, or nil when it is gone from Redis or has to wait for a limit.
  -- Second: whether it was let in for one.
  local function deliver(user, known)
    local lane, id, score = pop(user, known)
    if not lane then
      known.is_lost = true
      return nil
    end
    local is_over = known.expiring and deadlines.is_over(user, id)
    if is_over then
      expire(user, id, lane)
      return nil
    end
    local body = load_body(user, id, max_message_bytes)
    if not body then
      count(lane, -1)
      call('DEL', keys_of_task(user, id))
      hand.id = nil
      work.moved = work.moved + 1
      return nil
    end
    local limits = limited and limited.of(user, body)
    if limits and limited.must_wait(limits, user, id) then
      limited.hold(limits, user, id, lane, score)
      hand.id = nil
      work.moved = work.moved + 1
      return nil
    end
    local cost, was_let_in, group = hand_over(user, id, lane, score, body, limits, known, is_over)
    count(lane, -1)
    if group then cost = cost + take_along(user, id, group, name_in(body), known) end
    return cost, was_let_in
  end

  -- A user that goes on with something else does not need the places that it has in hand.
  function it.start_next(user, known)
    local cost, was_let_in = deliver(user, known)
    if cost and limited and not was_let_in and limited.take_back(user) then
      known.critical, known.normal = call('ZCARD', place_key('critical', user)), call('ZCARD', place_key('normal', user))
    end
    return cost
  end

  -- Lanes were filled meanwhile.
  function it.look_anew() serving = {} end

  return it
end

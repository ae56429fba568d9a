-- Take over what silent workers have.
--@include base
--@include state
--@include task
--@include cursor
--@include limits
--@include fair
--@include work
--@include history

local function new_stealing(claim, work)
  --@fields Claim claim: worker want lease_ms max_message_bytes
  local it = {}
  local LOOKS = 20
  local LOOK_SHARE = 0.4 -- of a lease, between two looks at a lane: a lease and this are less than 1.5 leases, with room

  -- A delivery whose worker fell silent is ours now; (stream id, attempt) fences off the old owner.
  local function take_over(lane, user, stream_id, id)
    local key = task_key(user, id)
    local known = call('HMGET', key, 'stream_id', 'attempt', 'score', 'failures', 'lost', 'returned', 'since', 'queued',
      'worker', 'canceling', 'limited')
    local body = known[1] == stream_id and load_body(user, id, max_message_bytes)
    if not body then
      call('XACK', stream_key(lane, user), 'workers', stream_id)
      call('XDEL', stream_key(lane, user), stream_id)
      if known[11] then
        limited = limited or new_limits()
        limited.stop(known[11], user, id)
      end
      if known[1] == stream_id then call('DEL', keys_of_task(user, id)) end
      count('started', -1)
      return
    end
    local attempt, lost = known[2] + 1, (known[5] or 0) + 1
    call('HSET', key, 'attempt', attempt, 'lost', lost, 'worker', worker, 'started', now_text)
    work.note(user, id, lane, stream_id, attempt, known[3], history_of(known[4], lost, known[6], known[7], known[8], known[10]),
      body)
    local old = known[9]
    if old and old ~= worker then
      local stream = stream_key(lane, user)
      if #call('XPENDING', stream, 'workers', '-', '+', 1, old) == 0 then
        call('XGROUP', 'DELCONSUMER', stream, 'workers', old)
      end
    end
  end

  -- Workers come and go while a lane stays busy: forget the consumers of those that no longer report.
  local function forget_consumers(stream)
    if call('XINFO', 'GROUPS', stream)[1][4] <= call('ZCARD', prefix .. 'workers') + 1 then return end
    for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream, 'workers')) do
      if consumer[4] == 0 and not call('ZSCORE', prefix .. 'workers', consumer[2]) then
        call('XGROUP', 'DELCONSUMER', stream, 'workers', consumer[2])
      end
    end
  end

  local function steal_from(member, most)
    local colon = string.find(member, ':', 1, true)
    local lane, user = string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
    local stream, cursor_field = stream_key(lane, user), 'cursor:' .. member
    if call('EXISTS', stream) == 0 then
      call('ZREM', leases_key, member)
      forget_cursor(member)
      return
    end
    local cursor = call('HGET', state_key, cursor_field) or '0-0'
    local found = call('XAUTOCLAIM', stream, 'workers', worker, lease_ms, cursor, 'COUNT', most)
    for _, entry in ipairs(found[2]) do take_over(lane, user, entry[1], entry[2][2]) end
    if call('XLEN', stream) == 0 then
      call('DEL', stream)
      call('ZREM', leases_key, member)
      forget_cursor(member)
    elseif found[1] == '0-0' then
      forget_consumers(stream)
      call('ZADD', leases_key, now + math.ceil(lease_ms * LOOK_SHARE), member)
      forget_cursor(member)
    else
      call('ZADD', leases_key, now, member) -- behind those whose time came before now
      if call('HSET', state_key, cursor_field, found[1]) == 1 then count('cursors', 1) end
    end
  end

  local function lanes_to_look_at()
    if work.everyone then return call('ZRANGEBYSCORE', leases_key, '-inf', now, 'LIMIT', 0, LOOKS) end
    local due = {}
    for _, name in ipairs(work.groups) do
      for _, member in ipairs(assignments.lanes(name, LOOKS - #due)) do due[#due + 1] = member end
    end
    return due
  end

  -- At most half while others wait for their turn; of a single task every other one.
  local function may_steal()
    if not fair().anybody_is_ready() then return want end
    if want > 1 then return math.ceil(want / 2) end
    return call('HDEL', state_key, 'stole') == 1 and 0 or 1
  end

  -- The lanes that are due share alike.
  function it.steal()
    local lanes = lanes_to_look_at()
    local most = #lanes > 0 and may_steal() or 0
    local of_each = math.ceil(most / #lanes)
    for _, member in ipairs(lanes) do
      if work.delivered >= most then break end
      steal_from(member, math.min(of_each, most - work.delivered))
    end
    if want == 1 and work.delivered == 1 then call('HSET', state_key, 'stole', 1) end
  end

  -- When this worker has to look again.
  function it.next_look()
    if work.everyone then return tonumber(call('ZRANGE', leases_key, 0, 0, 'WITHSCORES')[2] or math.huge) end
    local first = math.huge
    for _, name in ipairs(work.groups) do first = math.min(first, assignments.next_look(name)) end
    return first
  end

  return it
end

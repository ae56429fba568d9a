-- Take over what silent workers have. Whatever ran in a process that died may have killed it: each is a suspect, and runs
-- apart from the others until one of them dies alone.
--@include base
--@include state
--@include task
--@include limits
--@include fair
--@include work
--@include history
--@include suspects
--@include charging
--@include in_group
--@include hunt

local function new_taking_over(claim, work, room)
  --@fields Claim claim: worker lease_ms max_message_bytes max_deliveries holds
  local it = {}
  local CANDIDATES = 20 -- silent deliveries of each lane
  local LOOK_SHARE = 0.4 -- of a lease, between two looks at a lane in which something is silent
  local OWN_LEASES = 3 -- in which the reply to a claim may be on its way
  local ROOM_MS = 200 -- between two looks at what waits for a worker that runs nothing else
  local MOST_LEASES_ALONE = 6
  local waits = nil -- a lane in which one waits for room

  -- Its entry outlived it, or another hand took the rest away.
  local function clear_away(lane, user, stream_id, id, known)
    call('XACK', stream_key(lane, user), 'workers', stream_id)
    call('XDEL', stream_key(lane, user), stream_id)
    if known.limited then limiting().stop(known.limited, user, id) end
    if known.stream_id == stream_id then call('DEL', keys_of_task(user, id)) end
    count('started', -1)
  end

  local FIELDS = { 'stream_id', 'attempt', 'score', 'failures', 'lost', 'returned', 'since', 'queued', 'worker',
    'canceling', 'limited', 'started', 'received', 'tried', 'deaths', 'alone', 'charged', 'charged_before' }
  local function read(user, id)
    local fields = {}
    for at, value in ipairs(call('HMGET', task_key(user, id), unpack(FIELDS))) do fields[FIELDS[at]] = value end
    return fields
  end

  -- What the death of its last worker says of a task: nothing of one that had not arrived, or ran there as any other.
  -- `idle`: ms since the last sign of that worker, which may have lived for as long as half a lease after it.
  local function judge(known, idle)
    known.lived = math.max(0, now - idle - (tonumber(known.started) or now)) + lease_ms / 2
    known.tried, known.deaths = tonumber(known.tried) or 0, tonumber(known.deaths) or 0
    if not known.lost or known.received ~= known.attempt then return end
    if known.lived < (tonumber(known.alone) or 0) then
      known.deaths = known.deaths + 1
    else
      known.tried = known.tried + 1
    end
  end

  -- For how long it is to run alone, in ms: for longer than it ran until its last worker died, but not for ever.
  local function time_alone(known) return math.ceil(math.min(known.lived + lease_ms, MOST_LEASES_ALONE * lease_ms)) end

  local function needs_room(known) return known.tried > 0 and known.deaths < max_deliveries end

  local function forget_consumer(stream, consumer)
    if consumer == worker then return end
    if #call('XPENDING', stream, 'workers', '-', '+', 1, consumer) == 0 then
      call('XGROUP', 'DELCONSUMER', stream, 'workers', consumer)
    end
  end

  -- The delivery is ours now; (stream id, attempt) fences off the old owner.
  local function take_over(lane, user, stream_id, id, known, body)
    local alone = needs_room(known) and time_alone(known)
    local attempt, lost = attempt_in(known.attempt) + 1, (tonumber(known.lost) or 0) + 1
    call('XAUTOCLAIM', stream_key(lane, user), 'workers', worker, lease_ms, stream_id, 'COUNT', 1, 'JUSTID')
    call('HSET', task_key(user, id), 'attempt', attempt, 'lost', lost, 'worker', worker, 'started', now_text, 'tried',
      known.tried, 'deaths', known.deaths)
    if alone then
      call('HSET', task_key(user, id), 'alone', alone)
      room.take(alone)
    else
      call('HDEL', task_key(user, id), 'alone')
    end
    if known.charged then new_charging().interrupt(user, id, known.charged, known.charged_before) end
    watch_suspect(user, id, lease_ms)
    work.note(user, id, lane, stream_id, attempt, known.score, history_of(known, lost, alone), body)
    work.alone = alone and true
  end

  -- Its own that are late are renewed by it: it may have been stopped, and goes on. What it does not renew, as it knows
  -- nothing of it, is nobody's.
  local renewed
  local function may_have(idle)
    if idle < OWN_LEASES * lease_ms then return true end
    renewed = renewed or tonumber(call('HGET', prefix .. 'worker:' .. worker, 'seen') or 0)
    return holds > 0 and renewed < now - lease_ms
  end

  -- True: this worker has it, or nobody can have it.
  local function try(lane, user, entry)
    local stream_id, consumer = entry[1], entry[2]
    if consumer == worker and may_have(entry[3]) then return false end
    local found = call('XRANGE', stream_key(lane, user), stream_id, stream_id)[1]
    local id = found and found[2][2]
    local known = id and read(user, id) or {}
    local body = known.stream_id == stream_id and load_body(user, id, max_message_bytes)
    if not body then
      clear_away(lane, user, stream_id, id or '', known)
      return true
    end
    judge(known, entry[3])
    if needs_room(known) and not (room.is_open() and work.delivered == 0) then
      waits = lane .. ':' .. user
      return false
    end
    take_over(lane, user, stream_id, id, known, body)
    forget_consumer(stream_key(lane, user), consumer)
    return true
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

  local function look_again(member, user, at)
    call('ZADD', leases_key, at, member)
    if has_assigned then assignments.note_lease(member, user, at) end
  end

  -- At most one.
  local function steal_from(member)
    local colon = string.find(member, ':', 1, true)
    local lane, user = string.sub(member, 1, colon - 1), string.sub(member, colon + 1)
    local stream, next_look = stream_key(lane, user), now + QUIET_LEASES * lease_ms
    if call('EXISTS', stream) == 0 then return call('ZREM', leases_key, member) end
    local waits_before = waits
    waits = nil
    for _, entry in ipairs(in_group(user, stream, 'XPENDING', 'IDLE', lease_ms, '-', '+', CANDIDATES)) do
      next_look = math.min(next_look, now + math.ceil(lease_ms * LOOK_SHARE))
      if try(lane, user, entry) then next_look = now end -- behind those whose time came before now
      if work.delivered > 0 then break end
    end
    if waits then next_look = math.max(now + ROOM_MS, math.min(next_look, room.opens_at())) end
    waits = waits or waits_before
    if call('XLEN', stream) == 0 then
      call('DEL', stream)
      call('ZREM', leases_key, member)
    else
      if work.delivered == 0 then forget_consumers(stream) end
      look_again(member, user, next_look)
    end
  end

  function it.look_at(member)
    local is_done, failure = pcall(steal_from, member)
    if is_done then return end
    local user = string.match(member, ':(.*)$')
    damage().note(user, failure)
    look_again(member, user, damage().next_ms)
  end

  function it.waits() return waits end

  return it
end

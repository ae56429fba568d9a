-- What is broken of one user stays its own: what fails for a user is left alone, told of, and looked at again by and by.
-- damaged  zset  users → ms of the next look
-- damage   hash  user → what went wrong, of the first hundred

local function new_damage()
  local it = {}
  local damaged_key, errors_of = prefix .. 'damaged', prefix .. 'damage'
  local LOOK_MS, LOOKS, KEPT = 10000, 20, 100
  local try = redis.pcall

  it.next_ms = now + LOOK_MS

  -- Commands that read keys of a user, each as what it should be.
  local OF_A_USER = { { 'ZCARD', 'critical' }, { 'ZCARD', 'normal' }, { 'ZCARD', 'scheduled' }, { 'ZCARD', 'held' },
    { 'SCARD', 'deferred' }, { 'ZCARD', 'lapsing' }, { 'ZCARD', 'schedules' }, { 'ZCARD', 'expiring' },
    { 'ZCARD', 'held-keys' }, { 'XLEN', 'critical-stream' }, { 'XLEN', 'normal-stream' }, { 'LLEN', 'announcements' },
    { 'HLEN', 'offers' }, { 'HLEN', 'user' }, { 'STRLEN', 'keeper' } }
  local RARELY_READ = { { 'ZCARD', 'dead' }, { 'STRLEN', 'policy' }, { 'STRLEN', 'metrics' }, { 'HLEN', 'bytes' },
    { 'ZCARD', 'bytes-expiring' }, { 'HLEN', 'xcom-bytes' }, { 'ZCARD', 'xcom-spaces' }, { 'SCARD', 'assignments' } }
  local OF_A_TASK = { { 'STRLEN', 'body' }, { 'HLEN', 'task' }, { 'LLEN', 'errors' }, { 'STRLEN', 'result' },
    { 'SCARD', 'needs' }, { 'SCARD', 'uses' }, { 'SCARD', 'feeds' }, { 'SCARD', 'informed' }, { 'XLEN', 'chunks' },
    { 'STRLEN', 'ends' }, { 'SCARD', 'children' } }

  local function broken_of(reads, whose)
    for _, read in ipairs(reads) do
      local key = place_key(read[2], whose)
      local reply = try(read[1], key)
      if type(reply) == 'table' and reply.err then return key end
    end
  end

  -- Some of those that wait, and that run.
  local function some_tasks(user)
    local ids = {}
    for _, where in ipairs({ 'critical', 'normal', 'scheduled', 'held' }) do
      for _, id in ipairs(try('ZRANGE', place_key(where, user), 0, 1)) do ids[#ids + 1] = id end
    end
    for _, lane in ipairs({ 'critical', 'normal' }) do
      for _, entry in ipairs(try('XRANGE', stream_key(lane, user), '-', '+', 'COUNT', LOOKS)) do ids[#ids + 1] = entry[2][2] end
    end
    for _, id in ipairs(try('SRANDMEMBER', place_key('deferred', user), LOOKS)) do ids[#ids + 1] = id end
    return ids
  end

  -- What went wrong with a user, and with which key of it. id: of the task with which, where that is known.
  function it.told(user, failure, id)
    local text = text_of(failure)
    if not string.find(text, '^WRONGTYPE') or string.find(text, prefix, 1, true) then return text end
    local key = broken_of(OF_A_USER, user) or broken_of(RARELY_READ, user) or id and broken_of(OF_A_TASK, user .. ':' .. id)
    for _, other in ipairs(not key and some_tasks(user) or {}) do key = key or broken_of(OF_A_TASK, user .. ':' .. other) end
    return key and text .. ': ' .. key or text
  end

  -- Raises the error again, with what it is about.
  function it.fail(user, failure, id) error({ err = it.told(user, failure, id) }, 0) end

  -- Raises the error again where it is not the user's.
  function it.note(user, failure, id)
    if is_of_all(text_of(failure)) then error(failure, 0) end
    local text = it.told(user, failure, id)
    call('ZADD', damaged_key, it.next_ms, user)
    if call('HLEN', errors_of) < KEPT or call('HEXISTS', errors_of, user) == 1 then
      call('HSET', errors_of, user, string.sub(text, 1, 500))
    end
    call('HSET', state_key, 'damaged', 1)
    note_moment(it.next_ms, user)
  end

  -- Acts for a user, and notes what fails.
  function it.attempt(user, act, ...)
    local is_done, failure = pcall(act, ...)
    if not is_done then it.note(user, failure) end
  end

  -- It leaves the line in which it was found, whatever its policy says.
  function it.leave(user, line)
    if lines.tag(line, user) then nodes.leave({ name = user, member = user, up = line, weight = 1, policy = {} }) end
    if governed and lines.tag(reservations.line, user) then lines.remove(reservations.line, user) end
    nodes.known[user] = nil
  end

  local function check(user)
    for _, read in ipairs(OF_A_USER) do call(read[1], place_key(read[2], user)) end
    for _, lane in ipairs({ 'critical', 'normal' }) do
      local id = call('ZRANGE', place_key(lane, user), 0, 0)[1]
      if id then
        call('STRLEN', body_key(user, id))
        call('HLEN', task_key(user, id))
      end
    end
  end

  local function look_for_silent(user)
    for _, lane in ipairs({ 'critical', 'normal' }) do
      if call('EXISTS', stream_key(lane, user)) == 1 then
        local member = lane .. ':' .. user
        call('ZADD', leases_key, 'NX', now, member)
        if has_assigned then assignments.note_lease(member, user, now) end
      end
    end
  end

  -- It stands where its own keys say, in each list of the queue that leads to it.
  function it.come_back(user, woken)
    check(user)
    for where, all in pairs({ scheduled = due_key, lapsing = prefix .. 'lapsing', schedules = prefix .. 'schedules',
      batches = prefix .. 'batches', ['held-keys'] = prefix .. 'held-turns' }) do
      local first = call('ZRANGE', place_key(where, user), 0, 0, 'WITHSCORES')[2]
      if first then call('ZADD', all, 'LT', math.floor(first), user) end
    end
    local expires = call('ZRANGE', place_key('expiring', user), 0, 0, 'WITHSCORES')
    if expires[1] then deadlines.note(user, expires[1], expires[2]) end
    if call('EXISTS', prefix .. 'announcements:' .. user) == 1 then call('ZADD', prefix .. 'announcements', 'NX', now_us, user) end
    look_for_silent(user)
    local may_run
    if governed then
      may_run = governed.review(user)
    else
      local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
      may_run = id and not nodes.is_ready(nodes.user(user)) and choice.admit(user, cost_of_task(user, id))
    end
    if may_run then woken[user] = (woken[user] or 0) + 1 end
    call('ZREM', damaged_key, user)
    call('HDEL', errors_of, user)
  end

  -- Those whose time has come. One that stands still, as the clock was set back, or is to for longer by now, does so.
  function it.look_again(woken)
    for _, user in ipairs(call('ZRANGEBYSCORE', damaged_key, '-inf', now, 'LIMIT', 0, LOOKS)) do
      if is_frozen(user) then
        local left = call('PTTL', frozen_key(user))
        call('ZADD', damaged_key, left >= 0 and string.format('%d', now + left) or 'inf', user)
      elseif has_moved and moved_to(user) then
        call('ZREM', damaged_key, user)
        call('HDEL', errors_of, user)
      else
        it.attempt(user, it.come_back, user, woken)
      end
    end
    if call('EXISTS', damaged_key) == 0 then call('HDEL', state_key, 'damaged') end
  end

  local function take_out(hand)
    local stream = stream_key(hand.lane, hand.user)
    try('XACK', stream, 'workers', hand.stream_id)
    try('XDEL', stream, hand.stream_id)
    if try('XLEN', stream) ~= 0 then return end
    try('DEL', stream)
    try('ZREM', leases_key, hand.lane .. ':' .. hand.user)
  end

  local function does_not_run(hand, limited)
    local key = task_key(hand.user, hand.id)
    local of = limited and try('HGET', key, 'limited')
    if type(of) == 'string' then pcall(limited.stop, of, hand.user, hand.id) end
    try('HDEL', key, 'stream_id', 'worker', 'started', 'limited')
    if hand.new_fields == 6 then try('HDEL', key, 'state', 'lane', 'score') else try('HSET', key, 'state', 'queued') end
    if hand.counts then try('HINCRBY', key, 'attempt', -1) end
  end

  -- A task that was popped, back to its place: as far as it was delivered, or held, it is not. `limited`: of the caller.
  function it.put_back(hand, limited)
    local held = limited and try('HGET', task_key(hand.user, hand.id), 'held')
    if type(held) == 'string' then pcall(limited.unhold, hand.user, hand.id, held) end
    if hand.stream_id then take_out(hand) end
    if hand.new_fields then does_not_run(hand, limited) end
    try('ZADD', place_key(hand.lane, hand.user), hand.score, hand.id)
    hand.id = nil
  end

  -- What failed half way is scheduled as before: all but those that are done.
  function it.leave_scheduled(user, done, failure)
    it.note(user, failure)
    local waiting = place_key('scheduled', user)
    local failed = try('ZRANGEBYSCORE', waiting, '-inf', '(' .. now + 1, 'LIMIT', 0, #done + 1)[#done + 1]
    for _, lane in ipairs(failed and { 'critical', 'normal' } or {}) do
      if try('ZREM', place_key(lane, user), failed) == 1 then count(lane, -1) end
    end
    if failed and type(try('HSET', task_key(user, failed), 'state', 'scheduled')) == 'number' then
      call('HDEL', task_key(user, failed), 'queued')
    end
    if #done > 0 then count('scheduled', -try('ZREM', waiting, unpack(done))) end
    call('ZREM', due_key, user)
  end

  local function remove_from_places(user, id)
    for _, where in ipairs({ 'critical', 'normal', 'scheduled' }) do
      if try('ZREM', place_key(where, user), id) == 1 then count(where, -1) end
    end
  end

  -- One that did not learn of the end of a task goes on waiting for it.
  function it.leave_deferred(user, id, dependency)
    if try('HGET', task_key(user, id), 'state') ~= 'deferred' then return end
    remove_from_places(user, id)
    if try('SADD', place_key('deferred', user), id) == 1 then count('deferred', 1) end
    try('SADD', needs_key(user, id), dependency)
  end

  -- Nobody depends on it any more (lib/depend.lua).
  local function unlink(user, id)
    local linked = try('HGET', task_key(user, id), 'linked')
    if type(linked) ~= 'string' or call('EXISTS', uses_key(user, id), ends_key(user, id), children_key(user, id)) > 0 then return end
    if tonumber(linked) > 1 then try('PEXPIRE', result_key(user, id), linked) end
    try('HDEL', task_key(user, id), 'linked')
  end

  -- Of a task that could not be added, nothing is there. What waits for its id goes on waiting for it.
  function it.take_back(user, id, dependencies)
    remove_from_places(user, id)
    pcall(deadlines.forget, user, id)
    try('SREM', place_key('deferred', user), id)
    for _, dependency in ipairs(dependencies) do
      local feeds = feeds_key(user, dependency)
      try('SREM', feeds, id)
      if call('EXISTS', feeds, informed_key(user, dependency)) == 0 then unlink(user, dependency) end
    end
    call('DEL', task_key(user, id), needs_key(user, id), uses_key(user, id), ends_key(user, id))
    if call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0 then call('HSET', task_key(user, id), 'linked', 1) end
  end

  -- Those whose bodies were to be written last. (Their users may be among those that came lately, or be looked at for
  -- what is due: that is of no consequence.)
  function it.take_back_all(tasks, bodies, failure)
    local is_new = {}
    for at = 1, #bodies, 2 do is_new[bodies[at]] = true end
    for _, task in ipairs(tasks) do
      --@fields AddedTask task: user id needs
      if is_new[body_key(user, id)] then it.take_back(user, id, needs and needs[3] or {}) end
    end
    error(failure, 0)
  end

  -- A held task that failed to be let in is not in its lane as well. line: of its user at that key.
  function it.leave_held(user, line, failure)
    it.note(user, failure)
    local first = try('ZRANGE', line, 0, 0)[1]
    for _, lane in ipairs(first and { 'critical', 'normal' } or {}) do try('ZREM', place_key(lane, user), first) end
  end

  -- Its group is gone, and with it who has what: each delivery is its worker's again, whose lease begins anew.
  function it.mend_group(stream, user)
    try('XGROUP', 'CREATE', stream, 'workers', '0')
    for _, entry in ipairs(call('XRANGE', stream, '-', '+')) do
      local holder = call('HGET', task_key(user, entry[2][2]), 'worker') or 'nobody'
      call('XCLAIM', stream, 'workers', holder, '0', entry[1], 'FORCE', 'JUSTID')
    end
  end

  local function is_before(one, other)
    local ms, seq = string.match(one, '(%d+)-(%d+)')
    local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
    if ms ~= other_ms then return tonumber(ms) < tonumber(other_ms) end
    return tonumber(seq) < tonumber(other_seq)
  end

  -- An entry under its id, which a stream takes at its end only.
  local function insert_entry(stream, stream_id, id)
    local entries = call('XRANGE', stream, '-', '+')
    entries[#entries + 1] = { stream_id, { 'id', id } }
    table.sort(entries, function(one, other) return is_before(one[1], other[1]) end)
    call('DEL', stream)
    for _, entry in ipairs(entries) do call('XADD', stream, entry[1], unpack(entry[2])) end
  end

  -- A delivery is not in its stream, or nobody's there: the stream was lost, or its group.
  function it.mend_stream(stream, lane, user, id, stream_id)
    local found = call('XRANGE', stream, stream_id, stream_id)[1]
    if found and found[2][2] ~= id then return end -- of the same millisecond, in a stream that is newer
    if not found then insert_entry(stream, stream_id, id) end
    it.mend_group(stream, user)
    call('ZADD', leases_key, 'NX', now, lane .. ':' .. user)
  end

  return it
end

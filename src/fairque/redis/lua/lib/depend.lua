-- Dependencies. `uses` of a task holds what it depends on, `feeds` of a task those that depend on it and have not ended: the
-- two mirror each other. `needs` holds what a deferred task still waits for. While somebody is in `feeds` of a task, its
-- result has no time to live, so that what a living task is given by others lives as long as it does. A dead letter may be
-- requeued, and counts as living.
-- A task in either has the field `linked`, so that the others pay nothing at their end. Of a result that is kept for others
-- it is the time to live, in ms, that begins when the last of them has ended; else it is 1.
--@include base
--@include state
--@include task
--@include canceled
--@include limits
--@include ends
--@include place
--@include wake
--@include first_moment

-- Mostly it is one. Lua unpacks a few thousand at a time.
local function add_all_to(set, members)
  if not members[2] then
    if members[1] then call('SADD', set, members[1]) end
    return
  end
  for at = 1, #members, 1000 do call('SADD', set, unpack(members, at, math.min(at + 999, #members))) end
end

-- A function of lib/cancel.lua, below.
--@once
local cancel_task

local function new_links()
  local it = {}

  local STEP, TURN = 500, 50 -- tasks that one call passes outcomes on to, and of one user at a time while others wait
  local LAPSES, LOOKS = 100, 20 -- dead letters that one call gives up, and users of whom it does
  local lapsing_key = prefix .. 'lapsing'

  -- `ttl`: in ms, nil for none.
  local function set_ttl(user, id, ttl)
    local result, size = result_key(user, id), nil
    if bytes then
      size = call('STRLEN', result)
      bytes.change(user, 'result:' .. id, -size, bytes.expiry_of(result))
    end
    if ttl then call('PEXPIRE', result, ttl) else call('PERSIST', result) end
    if bytes then bytes.lay_result(user, id, size) end
  end

  function it.keep_result(user, id)
    local ttl = call('PTTL', result_key(user, id))
    if ttl < 0 then return call('HSETNX', task_key(user, id), 'linked', 1) end
    it.note_kept(user, id, ttl)
    set_ttl(user, id, nil)
  end

  -- Of a task that finishes: those that depend on it, or as many as one call informs. Nil where they cannot be read, which
  -- shows when they are told.
  function it.dependents_of(user, id)
    local found = redis.pcall('SRANDMEMBER', feeds_key(user, id), STEP)
    return not found.err and found or nil
  end

  -- Its result was written without a time to live, as others depend on it.
  function it.note_kept(user, id, ttl) call('HSET', task_key(user, id), 'linked', ttl > 2 and ttl or '2') end

  -- Of a task that has ended for good nothing is kept but what others need: its callbacks may be about to be put in.
  local function is_needed_itself(user, id)
    return call('EXISTS', uses_key(user, id), ends_key(user, id), children_key(user, id)) > 0
      and call('EXISTS', body_key(user, id)) == 1
  end

  -- Nobody depends on it any more.
  local function let_go(user, id)
    local key = task_key(user, id)
    local linked = call('HGET', key, 'linked')
    local ttl = tonumber(linked or 0)
    if ttl > 1 then
      set_ttl(user, id, ttl)
    elseif linked and not is_needed_itself(user, id) then
      take_moment(lapsing_key, place_key('lapsing', user), user, id)
    else
      return
    end
    call('HDEL', key, 'linked')
  end

  -- `dependents`: ids of those that depend on it from now on.
  function it.feed(user, id, dependents, is_finished)
    add_all_to(feeds_key(user, id), dependents)
    if is_finished then it.keep_result(user, id) else call('HSETNX', task_key(user, id), 'linked', 1) end
  end

  function it.link(user, id, dependency)
    call('SADD', uses_key(user, id), dependency)
    call('HSETNX', task_key(user, id), 'linked', 1)
    it.feed(user, dependency, { id }, call('GETRANGE', result_key(user, dependency), 9, 9) == 'F')
  end

  local function stop_using(user, id, most)
    local used = call('SPOP', uses_key(user, id), most)
    for _, dependency in ipairs(used) do
      local feeds, informed = feeds_key(user, dependency), informed_key(user, dependency)
      if call('SREM', feeds, id) == 0 then call('SREM', informed, id) end
      if call('EXISTS', feeds, informed) == 0 then let_go(user, dependency) end
    end
    return #used
  end

  -- Out of its place. Reads each key that its leaving writes, so that one of another type shows before. What it depends on
  -- hears of it when its end is passed on, or by `forget`.
  function it.leave_deferred(user, id)
    call('SCARD', needs_key(user, id))
    call('SCARD', uses_key(user, id))
    call('SCARD', place_key('deferred', user))
    call('DEL', needs_key(user, id))
    call('SREM', place_key('deferred', user), id)
    count('deferred', -1)
  end

  -- Of a task that is erased, as those that depend on it will be. Returns how much it used.
  function it.forget(user, id)
    local used = stop_using(user, id, call('SCARD', uses_key(user, id)))
    if call('EXISTS', feeds_key(user, id), informed_key(user, id)) == 1 then call('HSET', task_key(user, id), 'linked', 1) end
    return used
  end

  -- It waits in its lane, and is like one that was put in there: of which nothing is written, so that neither its claim nor
  -- its end look closer, unless there is more to it.
  local function note_queued(user, known)
    local key = task_key(user, known.id)
    if known.watched or known.unique then
      call('HSET', key, 'state', 'queued', 'queued', now_text)
    else
      call('HDEL', key, 'state', 'on_failure', 'waits')
    end
  end

  -- From their place among the deferred ones, which they leave first, to where they go on. In the order in which they came.
  local released = {}
  local function release(user, some, step_us)
    local ids, scored, first = {}, {}, nil
    for at, known in ipairs(some) do
      ids[at] = known.id
      known.due = known.delay and now + known.delay or tonumber(known.due or 0)
      known.head = head_of_task(user, known.id)
    end
    choice.know(user)
    call('SREM', place_key('deferred', user), unpack(ids))
    count('deferred', -#ids)
    for _, known in ipairs(some) do
      local priority = priority_of(known.head)
      if known.due > now then
        schedule(user, known.id, known.due)
        call('HSET', task_key(user, known.id), 'state', 'scheduled', 'due', known.due, 'priority', priority)
      else
        local lane, score = score_of(priority, step_us)
        local of_lane = scored[lane] or {}
        of_lane[#of_lane + 1], of_lane[#of_lane + 2], scored[lane] = score, known.id, of_lane
        first = first or known
      end
    end
    local queued = 0
    for lane, of_lane in pairs(scored) do
      call('ZADD', place_key(lane, user), unpack(of_lane))
      count(lane, #of_lane / 2)
      queued = queued + #of_lane / 2
    end
    for _, known in ipairs(some) do
      if known.due <= now then note_queued(user, known) end
    end
    if first and admit(user, cost_of(first.head)) then released[user] = (released[user] or 0) + queued end
    for _, known in ipairs(some) do
      if known.watched then publish(user, known.id, 'waiting') end
    end
  end

  -- 'go' on without it, 'end' as well, or 'wait' on: for a task that failed, as it may be requeued, and with `wait-on` for
  -- whatever has this id next.
  local function verdict(on_failure, outcome)
    if outcome == 'finished' or on_failure == 'run' then return 'go' end
    if on_failure == 'cancel' or outcome ~= 'failed' and on_failure == 'wait' then return 'end' end
    return 'wait'
  end
  it.verdict = verdict

  -- The task with which it began that one ends by this dependency: of one that was canceled itself, its record tells.
  local origins = {}
  function it.origin_of(user, dependency, outcome)
    if outcome ~= 'canceled' then return dependency end
    local key = result_key(user, dependency)
    if not origins[key] then
      local record = redis.pcall('GET', key)
      local is_read, fields = pcall(cmsgpack.unpack, type(record) == 'string' and string.sub(record, 11) or '')
      origins[key] = is_read and type(fields) == 'table' and type(fields[13]) == 'string' and fields[13] or dependency
    end
    return origins[key]
  end

  function it.reason_of(user, dependency, outcome)
    local origin, reason = it.origin_of(user, dependency, outcome), 'dependency ' .. dependency .. ' ' .. outcome
    return origin == dependency and reason or reason .. ', which began with ' .. origin
  end

  -- One dependent learns how one of its dependencies ended. It may have waited for another task of that id, which finished.
  -- True: it is to be released.
  local function inform(user, known, dependency, outcome, ttl)
    local id = known.id
    if known.with_parent == dependency and outcome == 'canceled' then
      cancel_task(user, id, 'its parent ' .. dependency .. ' was canceled', ttl)
      return false
    end
    if known.state ~= 'deferred' then return false end
    local does, needs = verdict(known.on_failure, outcome), needs_key(user, id)
    if does == 'go' then
      if call('SREM', needs, dependency) == 0 then return false end
      return known.waits_for_one or call('EXISTS', needs) == 0
    elseif does == 'end' and call('SISMEMBER', needs, dependency) == 1 then
      it.leave_deferred(user, id)
      end_canceled(user, id, it.reason_of(user, dependency, outcome), ttl, it.origin_of(user, dependency, outcome))
    end
    return false
  end

  -- How the task stands now: it may have been requeued since the announcement was put off.
  local function standing_outcome(user, id, outcome)
    local letter = call('GETRANGE', result_key(user, id), 9, 9)
    if letter == 'F' then return 'finished' end
    if letter == 'X' then return 'failed' end
    if letter == 'C' then return 'canceled' end
    if call('EXISTS', body_key(user, id)) == 1 then return nil end
    return outcome
  end

  -- Those that were told while others had yet to be are joined with the others.
  local function end_announcement(user, id, outcome)
    local feeds, informed = feeds_key(user, id), informed_key(user, id)
    if call('EXISTS', informed) == 1 then
      add_all_to(informed, call('SMEMBERS', feeds)) -- who came since: mostly nobody
      call('RENAME', informed, feeds)
    end
    if call('EXISTS', feeds) == 0 then
      let_go(user, id)
    elseif outcome == 'finished' then
      it.keep_result(user, id)
    else
      call('HSETNX', task_key(user, id), 'linked', 1)
    end
  end

  local function came_before(one, other) return one.came < other.came end

  -- A set has no order of its own: those who came first go on first, among as many as one call informs.
  local function in_order(user, ids)
    local some = {}
    for at, id in ipairs(ids) do
      local fields = call('HMGET', task_key(user, id), 'came', 'state', 'on_failure', 'unique', 'due', 'delay', 'watched',
        'waits', 'with_parent')
      some[at] = { id = id, came = tonumber(fields[1] or 0), state = fields[2], on_failure = fields[3], unique = fields[4],
        due = fields[5], delay = fields[6], watched = fields[7], waits_for_one = fields[8] == '1', with_parent = fields[9] }
    end
    if some[2] then table.sort(some, came_before) end
    return some
  end

  -- Of those who are told, some may be canceled, and leave `feeds` when their own end is passed on.
  local being_told
  local function tell_all(user, id, outcome, dependents, free, step_us, ttl)
    for _, known in ipairs(dependents) do
      being_told = known
      if inform(user, known, id, outcome, ttl) then free[#free + 1] = known end
    end
    being_told = nil
    if free[1] then release(user, free, step_us) end
  end

  local function tell(user, id, outcome, dependents, step_us, ttl)
    local free = {}
    being_told = nil
    local is_done, failure = pcall(tell_all, user, id, outcome, dependents, free, step_us, ttl)
    if is_done then return end
    local told = being_told
    free[#free + 1] = told
    for _, known in ipairs(free) do damage().leave_deferred(user, known.id, id) end
    damage().fail(user, failure, told and told.id)
  end

  -- What has ended for good uses nothing any more. Returns how much it was, and whether there is more.
  local function leave_used(user, id, outcome, most)
    if outcome == 'failed' then return 0, false end
    local used = stop_using(user, id, most)
    return used, used == most
  end

  -- The same as pass_on of what has just ended, while nothing was put off: how it stands is known, and all of `feeds` have
  -- yet to be told. `dependents`: those, where they are known; a result that they need is kept for them already.
  local function pass_on_at_once(user, id, outcome, dependents, most, step_us, ttl)
    local ids = dependents or call('SRANDMEMBER', feeds_key(user, id), most)
    if #ids >= most then return 0, false end
    if ids[1] then tell(user, id, outcome, in_order(user, ids), step_us, ttl) end
    local used, has_more = leave_used(user, id, outcome, most)
    return #ids + math.max(1, used), not has_more
  end

  -- Informs at most `most` dependents of one task; returns how many, and whether that was all.
  local function pass_on(user, id, told, most, step_us, ttl)
    local outcome = standing_outcome(user, id, told)
    if not outcome then
      end_announcement(user, id)
      return 1, true
    end
    local feeds, informed = feeds_key(user, id), informed_key(user, id)
    local ids = call('SRANDMEMBER', feeds, most)
    if ids[1] then
      tell(user, id, outcome, in_order(user, ids), step_us, ttl)
      if #ids == most or call('EXISTS', informed) == 1 then
        call('SADD', informed, unpack(ids))
        call('SREM', feeds, unpack(ids))
        if call('EXISTS', feeds) == 1 then return #ids + 1, false end
      end
    end
    local used, has_more = leave_used(user, id, outcome, most)
    if has_more then return #ids + used, false end
    end_announcement(user, id, outcome)
    return #ids + math.max(1, used), true
  end

  local function attempt(act, user, id, ...)
    local is_done, informed, all = pcall(act, user, id, ...)
    if not is_done then damage().fail(user, informed, id) end
    return informed, all
  end

  -- announcements      zset  users with some that were put off → their last turn, in us
  -- announcements:<u>  list  {id, outcome}, the oldest first
  local turns_key = prefix .. 'announcements'
  local function line_of(user) return turns_key .. ':' .. user end

  local function put_off(user, id, outcome)
    call('RPUSH', line_of(user), cmsgpack.pack({ id, outcome }))
    call('ZADD', turns_key, 'NX', now_us, user)
    count('announcements', 1)
  end

  local function wake_released()
    for user, tasks in pairs(released) do wake(user, tasks) end
    released = {}
  end

  function it.put_off_from(first, step_us, ttl)
    for at = first, #announcements do put_off(unpack(announcements[at])) end
    wake_from(prefix .. 'waiting', 1)
    it.call_back(step_us, ttl)
    wake_released()
  end

  local put_off_before = tonumber(has_announcements or 0)
  local function are_put_off() return put_off_before + (counts.announcements or 0) > 0 end

  -- The oldest one of the user whose turn it is, or a part of it. Returns how many it informed.
  local turn = 0
  local function take_turn_of(user, has_others, budget, step_us, ttl)
    local line, most = line_of(user), has_others and math.min(budget, TURN) or budget
    local packed = call('LINDEX', line, 0)
    local informed, all = 1, false
    if packed then
      local oldest = cmsgpack.unpack(packed)
      informed, all = attempt(pass_on, user, oldest[1], oldest[2], most, step_us, ttl)
    end
    if all then
      call('LPOP', line)
      count('announcements', -1)
    end
    turn = turn + 1
    if call('EXISTS', line) == 1 then call('ZADD', turns_key, now_us + turn, user) else call('ZREM', turns_key, user) end
    return informed
  end

  -- lapsing      zset  users with dead letters that are linked → ms when the first of each is given up
  -- lapsing:<u>  zset  id → ms when it is given up
  function it.lapse_at(user, id, ms)
    local at = string.format('%d', ms)
    call('ZADD', place_key('lapsing', user), at, id)
    call('ZADD', lapsing_key, 'LT', at, user)
  end

  function it.lapses(user, id) return call('ZSCORE', place_key('lapsing', user), id) end

  local function give_up(user, id)
    call('ZREM', place_key('lapsing', user), id)
    if call('EXISTS', body_key(user, id)) == 1 then
      -- One of its id was put in since: it stops using what this one did.
      if call('HGET', task_key(user, id), 'state') ~= 'failed' then return call('HSETNX', task_key(user, id), 'linked', 1) end
      erase_task(user, id)
    end
    put_off(user, id, 'expired')
  end

  local function give_up_of(user, most)
    local own = place_key('lapsing', user)
    for _, id in ipairs(call('ZRANGEBYSCORE', own, '-inf', now, 'LIMIT', 0, most)) do
      local is_done, failure = pcall(give_up, user, id)
      if not is_done then
        call('ZADD', own, damage().next_ms, id)
        damage().note(user, failure, id)
      end
    end
    end_turn(lapsing_key, own, user)
  end

  -- By turns of users. Whoever waits for them is told, and what they used is let go, by the calls that follow.
  function it.give_up_lapsed()
    local users = call('ZRANGEBYSCORE', lapsing_key, '-inf', now, 'LIMIT', 0, LOOKS)
    local most = math.floor(LAPSES / #users)
    for _, user in ipairs(users) do
      local is_done, failure = pcall(give_up_of, user, most)
      if not is_done then
        damage().note(user, failure)
        call('ZREM', lapsing_key, user)
      end
    end
  end

  local function take_turn(budget, step_us, ttl)
    local users = call('ZRANGE', turns_key, 0, 1)
    local user = users[1]
    if not user then return budget end -- the key was lost
    local is_done, informed = pcall(take_turn_of, user, users[2], budget, step_us, ttl)
    if is_done then return informed end
    damage().note(user, informed)
    call('ZREM', turns_key, user)
    return 1
  end

  -- Of what has ended in this call so far.
  local called = 0
  function it.call_back(step_us, ttl)
    while called < #announcements do
      called = called + 1
      local ended = announcements[called]
      if ended[4] then
        local user, id, outcome = ended[1], ended[2], ended[3]
        damage().attempt(user, function()
          local queued = endings().call_back(user, id, outcome, step_us, ttl)
          if queued > 0 then released[user] = (released[user] or 0) + queued end
        end)
      end
    end
  end

  -- What this call caused is told at once, as long as nothing was put off; what is put off, by turns of users.
  function it.pass_on_outcomes(step_us, ttl)
    local budget, at, failure, goes_on = STEP, 1, nil, are_put_off()
    it.call_back(step_us, ttl)
    while announcements[at] and budget > 0 and not are_put_off() do
      local ended = announcements[at]
      local user, id, outcome = ended[1], ended[2], ended[3]
      local is_done, informed, all
      if outcome == 'finished' or outcome == 'failed' then
        is_done, informed, all = pcall(pass_on_at_once, user, id, outcome, ended[5], budget, step_us, ttl)
      else -- one of its id may have been put in by this very call
        is_done, informed, all = pcall(pass_on, user, id, outcome, budget, step_us, ttl)
      end
      if not is_done then
        local _, told_of = pcall(damage().fail, user, informed, id)
        failure = { user = user, of = told_of }
        break
      end
      budget = budget - informed
      if not all then break end
      at = at + 1
    end
    local function put_off_others()
      for left = at, #announcements do put_off(unpack(announcements[left])) end
      at = #announcements + 1
    end
    put_off_others()
    if failure then damage().note(failure.user, failure.of) end
    while budget > 0 and are_put_off() do
      budget = budget - take_turn(budget, step_us, ttl)
      put_off_others()
    end
    if goes_on then it.give_up_lapsed() end -- they may be what was put off, and one call gives up so many
    if are_put_off() then wake_from(prefix .. 'waiting', 1) end
    it.call_back(step_us, ttl)
    wake_released()
  end

  return it
end

local links
local function depend()
  links = links or new_links()
  return links
end

--@include cancel

-- What an earlier call put off, and what this one caused: one step of it in each call.
local is_passed_on, passed_on = false, 0
local function pass_on_outcomes(step_us, ttl)
  if is_passed_on then return end
  is_passed_on = true
  if announcements[1] or tonumber(has_announcements or 0) > 0 then depend().pass_on_outcomes(step_us, ttl) end
  passed_on = #announcements
end

-- What this call caused after that is passed on by those that follow.
local function put_off_outcomes(step_us, ttl)
  if not announcements[passed_on + 1] then return end
  depend().put_off_from(passed_on + 1, step_us, ttl)
  passed_on = #announcements
end

-- Limits: how many tasks of a key run at once, and how often they start. A task has the key of its name, and those that it
-- was put in with. `limited` is nil in a queue that has none. A task that must wait is held apart under one of its keys, so
-- that it blocks nothing behind it. Room goes by turns of users: who is let in has a place of each of its keys in hand, and
-- comes back to its place in its lane.
-- A key `<k>` is `<u>:<text>` or, of a template that was filled, `<u>=<template>:<text>`; without `<u>` all users share it.
-- What is set lies in records `<r>`: `<u>:<text>`, or `<u>=<template>`.
-- In a queue with partitions, keys that all users share are counted in several, see lib/loans.lua.
-- limit:<r>           hash    by (hand or code), max, rate_us, burst: what holds; hand, code: what each of them says;
--                             changed: of a partition, us at which `max` did;
--                             uncounted, while what ran before it is being counted; paused, where nothing may start
-- uncounted           set     records whose limits are uncounted; `recount` of `state` tells how far the count has come
-- limit-rate:<k>      string  'tat interval', see lib/gcra.lua
-- running:<k>         set     <u>:<id> of the deliveries that count
-- let-in:<k>          zset    <u>:<id> of tasks that have a place in hand and have not started → ms until when
-- offers:<u>          hash    the same of one user: id → keys; `in_hand` of `state` tells how many there are of all users
-- held                zset    keys with held tasks → ms of the next look
-- held-keys:<u>       zset    keys of templates, and of that user alone, in whose line it stands → ms of a look by its turn
-- held-turns          zset    users → ms of the first of these, or of its last turn: where more keys are due than one call
--                             looks at, they go by turns of users
-- held-users:<k>      zset    users with held tasks of that key → when they were last let in, in us, or may be again
-- held:<u>            zset    held tasks of a user → their score
-- held:<u>:<k>        zset    the same, of one key; one that keeps a place of another key is the first
-- kept:<k>            set     those of let-in:<k> that are held, and keep their place while they wait for another key
-- keeper:<u>          string  the task of the user that does so, or did so in vain
--@include base
--@include state
--@include message
--@include fair
--@include gcra
--@include moments
--@include first_moment
--@include loans

local function new_limits()
  local it, rules, known, freed = {}, {}, {}, {}
  local held_key, turns_key = prefix .. 'held', prefix .. 'held-turns'
  local LOOK_MS, UNLIMITED = 1000, 100 -- a look even if nothing was freed; how many are let in when a limit is gone
  local KEYS_DUE, USERS = 200, 20 -- looked at in one call; of one key, beyond those that are let in
  local KEYS_OF_A_USER = 5 -- looked at in its turn
  local LANES = 50 -- counted in one call
  local PAUSE_MS = 3600000 -- between two looks at a key that is paused
  local KEPT_SHARE = 20 -- a place is kept for this part of the wait, and afterwards none for so many times as long
  local function held_of(user, k) return place_key('held', user) .. ':' .. k end
  local function users_of(k) return prefix .. 'held-users:' .. k end
  local function running_of(k) return prefix .. 'running:' .. k end
  local function rate_of(k) return prefix .. 'limit-rate:' .. k end
  local function let_in_of(k) return prefix .. 'let-in:' .. k end
  local function kept_of(k) return prefix .. 'kept:' .. k end
  local function offers_of(user) return prefix .. 'offers:' .. user end
  local function keys_of(user) return prefix .. 'held-keys:' .. user end

  -- Keys as a text, each behind its length: '7::openai6:u:more'.
  local function packed(keys)
    local parts = {}
    for at, k in ipairs(keys) do parts[at] = #k .. ':' .. k end
    return table.concat(parts)
  end

  local function unpacked(stored)
    local keys, at = {}, 1
    while stored and at < #stored do
      local colon = string.find(stored, ':', at, true)
      local last = colon + tonumber(string.sub(stored, at, colon - 1))
      keys[#keys + 1], at = string.sub(stored, colon + 1, last), last + 1
    end
    return keys
  end

  it.keys_in = unpacked

  -- Of a key that all users share, in a queue with partitions; else nil.
  local loans
  local function loans_of(k)
    local first = string.byte(k)
    if first ~= 58 and first ~= 61 then return nil end -- ':' and '='
    loans = loans or new_loans()
    return loans.is_divided and loans or nil
  end

  -- What is allowed

  local function rule(record)
    local found = rules[record]
    if found == nil then
      local f = call('HMGET', prefix .. 'limit:' .. record, 'by', 'max', 'rate_us', 'burst', 'uncounted', 'paused', 'changed')
      found = (f[1] or f[6]) and { max = tonumber(f[2]), rate_us = tonumber(f[3]), burst = tonumber(f[4]),
        uncounted = f[5], paused = f[6], changed = tonumber(f[7] or 0) }
      rules[record] = found
    end
    return found
  end

  local function rule_for(k)
    local user, template, text = string.match(k, '^([^:=]*)=([^:]*):(.*)$')
    if not user then return rule(k) end
    return rule(user .. ':' .. text) or (user ~= '' and rule(user .. '=' .. template)) or rule('=' .. template)
  end

  -- Nil: nothing limits it.
  local function limit(k)
    local l = known[k]
    if l == nil then
      local of = rule_for(k)
      l = of and (of.max or of.rate_us or of.paused) and {
        key = k, max = of.max, rate_us = of.rate_us, burst = of.burst, uncounted = of.uncounted, paused = of.paused,
        changed = of.changed,
        running = call('SCARD', running_of(k)), let_in = call('ZCARD', let_in_of(k)),
        has_line = call('EXISTS', users_of(k)) == 1,
      }
      if l and l.rate_us then
        local tat, of_rate = string.match(call('GET', rate_of(k)) or '', '^(%S+) (%S+)$')
        l.tat = rate_tat(tat, of_rate, l.rate_us)
      end
      if l and (l.max or l.rate_us) and loans_of(k) then loans.apply(l) end
      known[k] = l
    end
    return l or nil
  end

  -- How many more may start, beside those that have a place in hand.
  local function room(l)
    if l.uncounted or l.paused then return 0 end
    local most = l.max and l.max - l.running or math.huge
    if l.rate_us then most = math.min(most, rate_allows(l.tat, l.rate_us, l.burst), l.starts or math.huge) end
    return most - l.let_in
  end

  it.limit, it.room = limit, room

  -- Places that are taken, also of a key that nothing limits any more.
  function it.used(k) return it.running(k) + call('ZCARD', let_in_of(k)) end
  function it.running(k) return call('SCARD', running_of(k)) end

  -- It is read anew when it is asked for.
  function it.forget(k) known[k] = nil end

  function it.set_tat(l, tat)
    l.tat = tat
    call('SET', rate_of(l.key), string.format('%.17g %.17g', tat, l.rate_us), 'PX',
      math.max(1, math.ceil((tat - now_us) / 1000)))
  end

  -- What is held under it may start at this ms (0 is now, -1: when somebody says so), of how many places, at which rate.
  function it.outlook(k)
    local l = limit(k)
    if not l then return 0, '', '', '' end
    local allowed = l.rate_us and math.max(0, rate_allows(l.tat, l.rate_us, l.burst) - l.let_in)
    local left = l.max and math.max(0, l.max - l.running - l.let_in)
    if left == 0 and l.loans and l.most > 0 then left = 1 end -- places come to where workers are
    return l.paused and -1 or 0, left or '', l.rate_us or '', allowed or ''
  end

  local function limits_of(keys)
    local limits = { keys = keys }
    for _, k in ipairs(keys) do limits[#limits + 1] = limit(k) end
    return limits
  end

  local function keys_in(user, body)
    local name, heading = heading_in(body)
    local own, keys = ':' .. name, {}
    for at = 2, heading and #heading or 1 do
      local text, template, is_own = heading[at][1], heading[at][2], heading[at][3]
      keys[#keys + 1] = (is_own and user or '') .. (template and '=' .. template or '') .. ':' .. text
    end
    if keys[1] ~= own and keys[2] ~= own then keys[#keys + 1] = own end
    return keys
  end

  -- Whether any task has a place in hand.
  local function any_in_hand() return has_in_hand + (counts.in_hand or 0) > 0 end

  -- Nil: nothing limits a task with this body, and it has no place in hand from before.
  function it.of(user, body)
    local limits = limits_of(keys_in(user, body))
    return (limits[1] or any_in_hand()) and limits
  end

  -- The first limit that keeps a task from starting; `mine`: keys of which it has a place. One that has its turn at the
  -- key `turn` needs room of the keys before, and of those behind a turn as well, where others wait: that order of keys
  -- is why two tasks never send each other from line to line while there is room.
  local function blocked(limits, turn, mine)
    for _, l in ipairs(limits) do
      if mine[l.key] then
        if l.uncounted or l.paused or room(l) < 0 then return l end
      elseif room(l) < 1 or (l.has_line and l.key > turn) then
        return l
      end
    end
  end

  -- Places in hand

  local function member_of(user, id) return user .. ':' .. id end

  -- A list of keys, and a set.
  local function in_hand(user, id)
    local mine = unpacked(call('HGET', offers_of(user), id))
    for _, k in ipairs(mine) do mine[k] = true end
    return mine
  end

  -- Beside those that it has, which may be of limits that are gone.
  local function hand_out(user, id, limits, until_ms, mine)
    local member, keys = member_of(user, id), { unpack(mine) }
    for _, l in ipairs(limits) do
      l.let_in = l.let_in + call('ZADD', let_in_of(l.key), until_ms, member)
      if not mine[l.key] then
        keys[#keys + 1] = l.key
        if l.loans then l.loans.take(l) end
      end
    end
    if keys[1] then count('in_hand', call('HSET', offers_of(user), id, packed(keys))) end
  end

  local function free(k, places)
    if not freed[k] then freed[#freed + 1] = k end
    freed[k] = (freed[k] or 0) + places
  end

  local function take_away(user, id, mine, may_keep)
    local member = member_of(user, id)
    for _, k in ipairs(mine) do
      if may_keep then call('SREM', kept_of(k), member) end
      if call('ZREM', let_in_of(k), member) == 1 and known[k] then known[k].let_in = known[k].let_in - 1 end
    end
    count('in_hand', -call('HDEL', offers_of(user), id))
  end

  -- Others may have them.
  local function give_back(user, id, mine)
    if not mine[1] then return end
    take_away(user, id, mine, true)
    for _, k in ipairs(mine) do free(k, 1) end
  end

  -- What limits a task with this body, for those who ask why it waits. Per limit: key, most or '', us between two starts or
  -- '', burst or '', tat, how many run, of these its user's or '', how many are let in, users that wait, held tasks of its
  -- own before it, those of others, whether it has a place in hand, whether it is paused.
  function it.look_at(user, id, body)
    local MOST_COUNTED, MOST_USERS = 1000, 500
    local function running_by_user(k)
      if call('SCARD', running_of(k)) > MOST_COUNTED then return '' end
      local own, start = 0, user .. ':'
      for _, member in ipairs(call('SMEMBERS', running_of(k))) do
        if string.sub(member, 1, #start) == start then own = own + 1 end
      end
      return own
    end
    local function turns_of_others(k, own)
      local before, turns = call('ZRANK', users_of(k), user) or MOST_USERS, 0
      for at, other in ipairs(call('ZRANGE', users_of(k), 0, MOST_USERS - 1)) do
        local tasks = other ~= user and call('ZCARD', held_of(other, k)) or 0
        turns = turns + math.min(tasks, own + (at <= before and 1 or 0))
      end
      return turns
    end
    local shown, mine = {}, any_in_hand() and in_hand(user, id) or {}
    for at, l in ipairs(it.of(user, body) or {}) do
      local own = call('ZRANK', held_of(user, l.key), id) or call('ZCARD', held_of(user, l.key))
      shown[at] = { l.key, l.most or l.max or '', l.rate_us or '', l.burst or '', string.format('%.0f', l.tat or 0), l.running,
        running_by_user(l.key), l.let_in, call('ZCARD', users_of(l.key)), own, turns_of_others(l.key, own),
        mine[l.key] and 1 or 0, l.paused and 1 or 0 }
    end
    return shown
  end

  -- Lines

  -- Where all places are taken by what runs, each end tells: such keys, however many, are looked at some at a time, and
  -- at moments that they share.
  local function next_look(l)
    local at = now + LOOK_MS
    if not l or l.let_in > 0 then return at end
    if l.paused then return now + PAUSE_MS end -- who ends the pause has it looked at
    if l.rate_us then
      local opens = math.ceil(rate_opens_at(l.tat, l.rate_us, l.burst) / 1000)
      if opens > now then return opens end
    end
    if l.uncounted or room(l) >= 1 then return at end
    local turns = math.max(1, math.ceil(call('ZCARD', held_key) / KEYS_DUE))
    return math.ceil((now + turns * LOOK_MS) / LOOK_MS) * LOOK_MS
  end

  -- Of names, and of texts that all users share, there are as many as limits. Of other keys one user may have any number.
  local function may_be_many(k) return string.byte(k) ~= 58 end -- ':'
  it.may_be_many = may_be_many
  function it.may_be_of_one(k) return string.byte(k) ~= 58 and string.byte(k) ~= 61 end

  -- What fails here costs no more than a turn.
  function it.note_key(user, k)
    redis.pcall('ZADD', keys_of(user), now_text, k)
    redis.pcall('ZADD', turns_key, 'LT', now_text, user)
  end

  -- Where there is room, those before it cannot use it: they are looked at again. `first`: of its user.
  local function stand_in_line(l, user, id, score, first)
    call('ZADD', held_of(user, l.key), first and -1 or score, id)
    local is_new = call('ZADD', users_of(l.key), 'NX', now_us, user) == 1
    l.has_line = true
    if is_new and may_be_many(l.key) then it.note_key(user, l.key) end
    if room(l) >= 1 then free(l.key, 1) elseif l.loans then l.loans.wants(l) end
    local at = next_look(l)
    if call('ZADD', held_key, 'NX', at, l.key) == 1 then note_moment(at, user) end
  end

  local function leave_line(user, id, k)
    call('ZREM', held_of(user, k), id)
    if call('EXISTS', held_of(user, k)) == 1 then return end
    if may_be_many(k) then pcall(take_moment, turns_key, keys_of(user), user, k) end
    call('ZREM', users_of(k), user)
    if call('EXISTS', users_of(k)) == 1 then return end
    call('ZREM', held_key, k)
    if known[k] then known[k].has_line = false end
  end

  -- What can be done with a task

  function it.must_wait(limits, user, id)
    limits.mine = any_in_hand() and in_hand(user, id) or {}
    limits.full = blocked(limits, '', limits.mine)
    return limits.full
  end

  function it.hold(limits, user, id, lane, score)
    local key = task_key(user, id)
    give_back(user, id, limits.mine)
    call('HSET', key, 'state', 'queued', 'lane', lane, 'score', score, 'held', limits.full.key)
    if limits.keys[2] then
      call('HSET', key, 'keys', packed(limits.keys))
      if not limits.mine[1] then call('HSET', key, 'held_since', now) end
    end
    call('ZADD', place_key('held', user), score, id)
    stand_in_line(limits.full, user, id, score)
  end

  -- Returns whether it was let in.
  function it.start(limits, user, id)
    local member, keys = member_of(user, id), {}
    local was_let_in = limits.mine[1] ~= nil
    if was_let_in then
      take_away(user, id, limits.mine, limits.keys[2])
      if limits.keys[2] then
        if call('GET', prefix .. 'keeper:' .. user) == id then call('DEL', prefix .. 'keeper:' .. user) end
        call('HDEL', task_key(user, id), 'keys', 'held_since')
      end
    end
    for at, l in ipairs(limits) do
      keys[at] = l.key
      if call('SADD', running_of(l.key), member) == 1 then l.running = l.running + 1 end
      if l.loans and not limits.mine[l.key] then l.loans.take(l) end
      if l.rate_us then
        it.set_tat(l, rate_after_start(l.tat, l.rate_us))
        if l.loans then l.loans.note_start(l) end
        local next_at = next_look(l)
        if l.has_line and call('ZADD', held_key, 'XX', 'CH', next_at, l.key) == 1 then note_moment(next_at, user) end
      end
    end
    if keys[1] then call('HSET', task_key(user, id), 'limited', packed(keys)) end
    return was_let_in
  end

  -- The delivery of a task is over; `counted`: the field of the task.
  function it.stop(counted, user, id)
    for _, k in ipairs(unpacked(counted)) do
      if call('SREM', running_of(k), member_of(user, id)) == 1 then
        if known[k] and known[k].loans then
          known[k] = nil -- its room may be others'
        elseif known[k] then
          known[k].running = known[k].running - 1
        end
        free(k, 1)
      end
    end
  end

  -- It left Redis, or goes back to its lane.
  function it.unhold(user, id, k)
    call('ZREM', place_key('held', user), id)
    leave_line(user, id, k)
    call('HDEL', task_key(user, id), 'held')
  end

  -- A task that waits ends: held under a key, or in its lane.
  function it.drop(user, id, k)
    if k then it.unhold(user, id, k) end
    if any_in_hand() then give_back(user, id, in_hand(user, id)) end
  end

  -- Places that are in hand, and not used

  local function others_wait(keys, user)
    for _, k in ipairs(keys) do
      local first = call('ZRANGE', users_of(k), 0, 1)
      if first[2] or (first[1] and first[1] ~= user) then return k end
    end
  end

  -- Where others wait for them, a task gives its places back, and is held again. Returns whether it did.
  local function withdraw(user, id, is_late)
    local mine = in_hand(user, id)
    local of_task = call('HMGET', task_key(user, id), 'lane', 'held', 'keys')
    if of_task[2] and not is_late then return false end -- it keeps them
    local lane = not of_task[2] and of_task[1]
    local score = lane and call('ZSCORE', place_key(lane, user), id)
    local k = others_wait(mine, user)
    if score and not k then return false end
    local limits = limits_of(of_task[3] and unpacked(of_task[3]) or mine)
    limits.mine, limits.full = mine, k and limit(k)
    if not score or not limits.full then
      give_back(user, id, mine)
    else
      call('ZREM', place_key(lane, user), id)
      it.hold(limits, user, id, lane, score)
    end
    return true
  end

  -- The user cannot, or does not, use its places: others may. Returns whether it had any.
  local without = {}
  function it.take_back(user)
    if not any_in_hand() or without[user] then return false end
    local ids = call('HKEYS', offers_of(user))
    without[user] = #ids == 0
    for _, id in ipairs(ids) do withdraw(user, id) end
    return #ids > 0
  end

  -- Nobody has served them for a while, or they kept a place in vain.
  local function take_back_late(k)
    for _, member in ipairs(call('ZRANGEBYSCORE', let_in_of(k), '-inf', now, 'LIMIT', 0, USERS)) do
      local user, id = string.match(member, '^([^:]*):(.*)$')
      if call('HEXISTS', offers_of(user), id) == 0 then -- that key was lost
        take_away(user, id, { k }, true)
      elseif withdraw(user, id, true) then
        retire(user)
      else
        call('ZADD', let_in_of(k), 'XX', now + LOOK_MS, member)
      end
    end
  end

  -- The user may have become able to use a place.
  function it.came_back(user)
    local id = call('ZRANGE', place_key('held', user), 0, 0)[1]
    local k = id and call('HGET', task_key(user, id), 'held')
    if k then free(k, UNLIMITED) end
  end

  -- Turns

  local function can_run(user)
    return is_served(user) and not (governed and governed.all_paused or gate_of(user))
  end

  -- Two keys that are always busy are never free at once: a task that has its turn at one of them, and must wait for the
  -- other, keeps its place for a while. One of each user; and nobody keeps a place who waits for one that is kept, so that
  -- they cannot wait for each other.
  local function keep(l, full, user, id, mine, since)
    local key = prefix .. 'keeper:' .. user
    local keeper = call('GET', key)
    if keeper and not (keeper == id and mine[1]) then return false end
    if call('EXISTS', kept_of(full.key)) == 1 then return false end
    local span = math.max(LOOK_MS, math.floor((now - tonumber(since or now)) / KEPT_SHARE))
    call('SADD', kept_of(l.key), member_of(user, id))
    for _, k in ipairs(mine) do call('ZADD', let_in_of(k), 'XX', now + span, member_of(user, id)) end
    hand_out(user, id, { l }, now + span, mine)
    call('SET', key, id, 'PX', span * (KEPT_SHARE + 1))
    return true
  end

  -- The first held task of the user, whose turn it is at a key. Returns whether it was let in; else it waits for another.
  local function take_turn(user, k, woken)
    local id = call('ZRANGE', held_of(user, k), 0, 0)[1]
    local key = task_key(user, id)
    local of_task = call('HMGET', key, 'lane', 'score', 'keys', 'held_since')
    local limits = limits_of(of_task[3] and unpacked(of_task[3]) or { k })
    local mine = of_task[3] and in_hand(user, id) or {}
    local full = blocked(limits, k, mine)
    if full then
      leave_line(user, id, k)
      local is_kept = limit(k) and keep(limit(k), full, user, id, mine, of_task[4])
      call('HSET', key, 'held', full.key)
      stand_in_line(full, user, id, of_task[2], is_kept)
      return false
    end
    call('ZADD', place_key(of_task[1], user), of_task[2], id) -- before it leaves the line: that key may be broken
    if limits[1] then
      call('HLEN', offers_of(user))
      hand_out(user, id, limits, now + LOOK_MS, mine)
      without[user] = nil
    end
    it.unhold(user, id, k)
    if admit(user, cost_of_task(user, id)) then woken[user] = (woken[user] or 0) + 1 end
    return true
  end

  -- Nil: it cannot run now.
  local function give_turn(user, k, at, woken)
    if not can_run(user) then return nil end
    call('ZADD', users_of(k), at, user)
    return take_turn(user, k, woken)
  end

  -- Those that cannot run now come after all others, for as long as a look lasts. Returns how many it let in, and whether
  -- there are users that it did not look at.
  local function let_in(k, l, most, woken)
    local given, passed, last = 0, {}, now_us + most + USERS
    for turn = 1, most + USERS do
      local user = call('ZRANGE', users_of(k), 0, 0)[1]
      if given == most or (l and room(l) < 1) or not user or passed[user] then return given, false end
      local is_done, was_let_in = pcall(give_turn, user, k, now_us + turn, woken)
      passed[user] = not is_done or was_let_in == nil
      if not is_done then damage().leave_held(user, held_of(user, k), was_let_in) end
      if passed[user] then call('ZADD', users_of(k), last + turn + LOOK_MS * 1000, user) end
      if is_done and was_let_in then given = given + 1 end
    end
    return given, tonumber(call('ZRANGE', users_of(k), 0, 0, 'WITHSCORES')[2] or math.huge) <= last
  end

  -- Places come from elsewhere for those who can run. Who could not, for whatever reason, may be able to by now.
  local function ask_for_places(l)
    if not l.loans or l.paused or l.uncounted or room(l) >= 1 or l.loans.asks(l) then return end
    if it.need(l.key) > 0 then l.loans.wants(l) end
  end

  -- Returns how many it let in.
  local function look(k, most, woken)
    local l = limit(k)
    if l and l.let_in > 0 then take_back_late(k) end
    local places = l and room(l) or UNLIMITED
    local given, is_cut = 0, false
    if places > 0 then given, is_cut = let_in(k, l, math.min(places, most), woken) end
    local user = call('ZRANGE', users_of(k), 0, 0)[1]
    if not user then return given end
    if l then ask_for_places(l) end
    is_cut = is_cut or not l or (given == most and given < places)
    local at = is_cut and now or next_look(l)
    call('ZADD', held_key, at, k)
    note_moment(at, user)
    return given
  end

  -- Those that may start now.
  function it.let_in(k, woken)
    if call('ZSCORE', held_key, k) then look(k, UNLIMITED, woken) end
  end

  -- How many of the tasks that are held under a key could start, and of how many users: of the first ones, and of others
  -- as many in proportion.
  function it.need(k)
    local tasks, users, seen = 0, 0, call('ZRANGE', users_of(k), 0, USERS - 1)
    for _, user in ipairs(seen) do
      local is_read, can = try_alone(can_run, user)
      if is_read and can then tasks, users = tasks + call('ZCARD', held_of(user, k)), users + 1 end
    end
    if #seen < USERS then return tasks, users end
    local share = call('ZCARD', users_of(k)) / USERS
    return math.ceil(tasks * share), math.ceil(users * share)
  end

  -- As many as became free, in the order of keys. Returns whether any was let in.
  function it.pass_on(woken)
    local keys, given = freed, 0
    freed = {}
    table.sort(keys)
    for _, k in ipairs(keys) do
      if call('ZSCORE', held_key, k) then given = given + look(k, math.min(keys[k], UNLIMITED), woken) end
      if loans_of(k) then loans.freed(k, limit(k)) end
    end
    return given > 0
  end

  -- What changes with a limit: what ran before there was one, and what waits

  local function count_delivery(user, id)
    local key = task_key(user, id)
    local limits = it.of(user, call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
    local counted = limits and unpacked(call('HGET', key, 'limited'))
    for _, l in ipairs(limits or {}) do
      if l.uncounted and call('SADD', running_of(l.key), member_of(user, id)) == 1 then
        l.running = l.running + 1
        if l.loans then l.loans.note(l.key, now) end -- the home has to know
        counted[#counted + 1] = l.key
      end
    end
    if counted and counted[1] then call('HSET', key, 'limited', packed(counted)) end
  end

  -- Some lanes at each claim, as that is rare.
  local is_counting = false
  local function count_running()
    local cursor = call('HGET', state_key, 'recount')
    if not cursor then return end
    local page = call('ZSCAN', leases_key, cursor, 'COUNT', LANES)
    for at = 1, #page[2], 2 do
      local lane, user = string.match(page[2][at], '^([^:]*):(.*)$')
      for _, entry in ipairs(call('XRANGE', stream_key(lane, user), '-', '+')) do count_delivery(user, entry[2][2]) end
    end
    is_counting = page[1] ~= '0'
    if is_counting then
      call('HSET', state_key, 'recount', page[1])
      return
    end
    for _, record in ipairs(call('SMEMBERS', prefix .. 'uncounted')) do
      call('HDEL', prefix .. 'limit:' .. record, 'uncounted')
    end
    call('DEL', prefix .. 'uncounted')
    call('HDEL', state_key, 'recount')
    rules, known = {}, {}
  end

  -- A limit was changed by which many keys that were filled may be held: some at each claim. Until all were looked at, keys
  -- come by turns of users, also those that were looked at a moment ago.
  local horizon = now
  local function look_at_all()
    local cursor = call('HGET', state_key, 'relook')
    if not cursor then return end
    horizon = now + LOOK_MS
    local page = call('ZSCAN', held_key, cursor, 'COUNT', KEYS_DUE)
    for at = 1, #page[2], 2 do
      if string.find(page[2][at], '^[^:]*=') then call('ZADD', held_key, 'XX', 'LT', now, page[2][at]) end
      if loans_of(page[2][at]) then loans.note(page[2][at], now) end
    end
    if page[1] == '0' then call('HDEL', state_key, 'relook') else call('HSET', state_key, 'relook', page[1]) end
    is_counting = is_counting or page[1] ~= '0'
  end

  -- Whether there is more to count, or to look at.
  function it.is_counting() return is_counting end

  -- Some keys of a user, of which `held` knows when they are due.
  local function take_keys_of(user, choose)
    local own = keys_of(user)
    for _, k in ipairs(call('ZRANGEBYSCORE', own, '-inf', horizon, 'LIMIT', 0, KEYS_OF_A_USER)) do
      local at = tonumber(call('ZSCORE', held_key, k) or nil)
      if not at then
        call('ZREM', own, k)
      else
        call('ZADD', own, math.min(math.max(at, horizon + 1), now + LOOK_MS + 1), k)
        if at <= now or horizon > now then choose(k) end
      end
    end
    end_turn(turns_key, own, user)
  end

  -- More are due than one call looks at: half of them by turns of users, the others as they came.
  local function by_turns(as_they_came)
    local chosen, seen = {}, {}
    local function choose(k)
      if not seen[k] then chosen[#chosen + 1], seen[k] = k, true end
    end
    for _, user in ipairs(call('ZRANGEBYSCORE', turns_key, '-inf', horizon, 'LIMIT', 0, USERS)) do
      local is_done, failure = pcall(take_keys_of, user, choose)
      if not is_done then
        damage().note(user, failure)
        call('ZREM', turns_key, user)
      end
    end
    for _, k in ipairs(as_they_came) do
      if #chosen < KEYS_DUE then choose(k) end
    end
    return chosen
  end

  -- The keys that are due share alike what one call lets in.
  function it.tick(woken)
    count_running()
    look_at_all()
    local keys = call('ZRANGEBYSCORE', held_key, '-inf', now, 'LIMIT', 0, KEYS_DUE)
    if #keys == KEYS_DUE or horizon > now then keys = by_turns(keys) end
    table.sort(keys)
    local most = math.max(1, math.floor(UNLIMITED / #keys))
    for _, k in ipairs(keys) do look(k, most, woken) end
  end

  return it
end
local limited = has_limits and not leaves_limits_alone and new_limits() or nil
if limited then on_held_back, on_reviewed = limited.take_back, limited.came_back end

-- At the end of a script that made room.
local function pass_room_on()
  if not limited then return end
  local woken = {}
  limited.pass_on(woken)
  for user, tasks in pairs(woken) do wake(user, tasks) end
end

-- Also in a queue whose last limit was lifted, while a task still counts for it.
local function limiting()
  limited = limited or new_limits()
  return limited
end

-- Policies: who may be served, how much at once, in which group. `governed` is nil in a queue that has none, which then
-- pays for one closure. A policy is a msgpack map in `policy:<u>`; what it does not say comes from `policy:*`, and a
-- group's own is in `policy:@<group>`.
-- ready:<group>  zset  users of the group → tag; in `ready` stands '@<group>' for all of them
-- group:<group>  hash  tag, clock and mean of its line
-- reserved       zset  users that are ready and below their min_running → tag
-- parked         zset  users with a backlog that are held back → ms at which they may go on by themselves, inf where that
--                      takes an event; '*' → the end of the pause of everybody
--@include base
--@include state
--@include message
--@include ready
--@include gcra
--@include metrics_format
--@include moments
--@include policies

-- Called with a user: functions in scripts that know limits of names (lib/limits.lua).
local on_held_back, on_reviewed = nil, nil

local function new_government()
  local it, known = {}, {}
  local parked_key, reserved_key = prefix .. 'parked', prefix .. 'reserved'
  local NEVER = math.huge -- until an event opens the gate: a task ends, the policy changes

  local function read(name)
    local packed = call('GET', prefix .. 'policy:' .. name)
    return packed and cmsgpack.unpack(packed) or {}
  end
  local default = read('*')
  local inherited = { __index = default }

  -- The pause of everybody is a flag that claims read: nobody leaves `ready` for it. True, or until when.
  it.all_paused = (default.paused == true or (default.paused or 0) > now) and default.paused

  -- Whoever is busy leaves now and then, which gives the hash more time.
  local function keep(key, ...)
    if call('HSET', key, ...) > 0 then call('PEXPIRE', key, USER_TTL) end
  end

  function it.user(user)
    local u = known[user]
    if not u then
      local policy = setmetatable(read(user), inherited)
      local group = policy.group
      u = { name = user, policy = policy, group = group, weight = policy.weight or 1, ready_key = ready_key }
      if group then
        u.ready_key, u.group_key, u.member = prefix .. 'ready:' .. group, prefix .. 'group:' .. group, '@' .. group
        u.group_weight = read(u.member).weight or 1
      end
      known[user] = u
    end
    return u
  end

  -- What happened in this script is read anew.
  function it.forget(user) known[user] = nil end

  function it.running(u)
    u.running = u.running or call('XLEN', stream_key('critical', u.name)) + call('XLEN', stream_key('normal', u.name))
    return u.running
  end

  local function read_marks(u)
    if u.tat then return end
    local marks = call('HMGET', user_key(u.name), 'tat', 'tat_of', 'open_until')
    u.tat, u.open_until = rate_tat(marks[1], marks[2], u.policy.rate_us), tonumber(marks[3] or 0)
  end

  -- When the user may be served: nil is now, else ms, or NEVER.
  function it.gate(u)
    local p, most = u.policy, u.policy.max_running
    local paused = rawget(p, 'paused')
    if paused == true then return NEVER end
    if paused and paused > now then return paused end
    if p.breaker_failures or p.rate_us then read_marks(u) end
    if p.breaker_failures and u.open_until > 0 then
      if u.open_until > now then return u.open_until end
      most = 1 -- half open: one task at a time shows whether it works again
    end
    if most and it.running(u) >= most then return NEVER end
    if p.rate_us then
      local at = rate_opens_at(u.tat, p.rate_us, p.rate_burst)
      if at > now_us then return math.ceil(at / 1000) end
    end
    return nil
  end

  -- A task of the user was delivered.
  function it.note_start(u)
    if u.running then u.running = u.running + 1 end
    local rate = u.policy.rate_us
    if not rate then return end
    read_marks(u)
    u.tat = rate_after_start(u.tat, rate)
    keep(user_key(u.name), 'tat', u.tat, 'tat_of', rate)
  end

  function it.tag(u)
    local tag = call('ZSCORE', u.ready_key, u.name)
    return tag and tonumber(tag)
  end

  -- Also of those whose reservation came from a default that has been taken back.
  local has_reserved
  local function unreserve(u)
    if u.reserved == nil then
      if has_reserved == nil then has_reserved = call('EXISTS', reserved_key) == 1 end
      u.reserved = has_reserved
    end
    if u.reserved then call('ZREM', reserved_key, u.name) end
    u.reserved = false
  end

  -- One slot of all workers is never reserved. Where they have not told how many there are, nothing is known of it.
  local most_reserved
  local function reserve(u, tag)
    local least = u.policy.min_running
    if least and not most_reserved then
      local slots = tonumber(call('HGET', state_key, 'slots') or 0)
      most_reserved = slots > 0 and slots - 1 or NEVER
    end
    if not least or it.running(u) >= math.min(least, most_reserved) then return unreserve(u) end
    call('ZADD', reserved_key, tag, u.name)
    u.reserved = true
  end

  -- Of the line in which the user stands: its clock and its mean.
  local function line_of(u)
    if not u.group then return clock, mean end
    local of_group = call('HMGET', u.group_key, 'clock', 'mean')
    return tonumber(of_group[1] or 0), tonumber(of_group[2] or 0)
  end

  local function join(u, cost)
    local kept = call('HMGET', user_key(u.name), 'tag', 'capped')
    if kept[2] then call('HDEL', user_key(u.name), 'capped') end
    local at, of_line = line_of(u)
    if u.group and not call('ZSCORE', ready_key, u.member) then
      local own = tonumber(call('HGET', u.group_key, 'tag') or 0)
      enter(ready_key, u.member, own, clock, cost / u.group_weight, mean)
    end
    reserve(u, enter(u.ready_key, u.name, tonumber(kept[1] or 0), at, cost / u.weight, of_line, kept[2]))
    call('ZADD', users_key, now, u.name)
  end

  -- The last user of a group takes the group along. What comes into an empty line next begins where this one ended.
  local function leave_group(u, tag)
    local of_group = tonumber(call('ZSCORE', ready_key, u.member) or 0)
    local at = math.max(tag, tonumber(call('HGET', u.group_key, 'clock') or 0))
    call('HSET', u.group_key, 'tag', of_group, 'clock', at)
    call('PEXPIRE', u.group_key, USER_TTL)
    call('ZREM', ready_key, u.member)
    return of_group
  end

  -- `capped`: it has work, and as much of it runs as may.
  function it.leave(u, capped)
    local tag = it.tag(u)
    if not tag then return end
    call('ZREM', u.ready_key, u.name)
    call('HSET', user_key(u.name), 'tag', tag)
    if capped then call('HSET', user_key(u.name), 'capped', 1) end
    call('PEXPIRE', user_key(u.name), USER_TTL)
    unreserve(u)
    if u.group then
      if call('EXISTS', u.ready_key) == 1 then return end
      tag = leave_group(u, tag)
    end
    if call('EXISTS', ready_key) == 0 then clock = math.max(clock, tag) end
  end

  local function park(u, at)
    local p = u.policy
    -- Only a change of its own policy lets it go on, or the end of one of its tasks: the defaults do not matter.
    local is_own = rawget(p, 'paused') == true or rawget(p, 'max_running') and not p.breaker_failures
    if at == NEVER and is_own then return end
    call('ZADD', parked_key, at, u.name)
    note_moment(at, u.name)
  end

  function it.hold_back(u, at)
    it.leave(u, at == NEVER and rawget(u.policy, 'paused') ~= true)
    park(u, at)
    if on_held_back then on_held_back(u.name) end
  end

  function it.admit(user, cost)
    local u = it.user(user)
    if it.tag(u) then return not it.all_paused end
    local at = it.gate(u)
    if not at then
      join(u, cost)
      return not it.all_paused
    end
    park(u, at)
    call('ZADD', users_key, now, user)
    return false
  end

  -- One service of a user that is ready: its own tag moves, and the tag and the clock of what it stands in.
  -- The tags are those that `lowest` found, if it did.
  function it.charge(u, cost, tag, group_tag)
    tag = tag or it.tag(u)
    if u.group then
      group_tag = group_tag or tonumber(call('ZSCORE', ready_key, u.member))
      clock = math.max(clock + cost / call('ZCARD', ready_key), group_tag)
      mean = mean_after(mean, cost / u.group_weight)
      call('ZADD', ready_key, group_tag + cost / u.group_weight, u.member)
      local at, of_line = line_of(u)
      at = math.max(at + cost / call('ZCARD', u.ready_key), tag)
      keep(u.group_key, 'clock', at, 'mean', mean_after(of_line, cost / u.weight))
    else
      clock = math.max(clock + cost / call('ZCARD', ready_key), tag)
      mean = mean_after(mean, cost / u.weight)
    end
    tag = tag + cost / u.weight
    call('ZADD', u.ready_key, tag, u.name)
    reserve(u, tag)
  end

  local function head_cost(user)
    local id = call('ZRANGE', place_key('critical', user), 0, 0)[1] or call('ZRANGE', place_key('normal', user), 0, 0)[1]
    return id and cost_of_task(user, id)
  end

  -- Puts the user where it belongs after something changed. True: it may be served now, and could not before.
  function it.review(user)
    it.forget(user)
    if on_reviewed then on_reviewed(user) end
    call('ZREM', parked_key, user)
    local u = it.user(user)
    local cost, tag = head_cost(user), it.tag(u)
    local at = cost and it.gate(u)
    if tag and at then it.hold_back(u, at) end
    if tag and not cost then it.leave(u) end
    if not cost then call('HDEL', user_key(user), 'capped') end
    if tag and cost and not at then reserve(u, tag) end
    if tag or not cost then return false end
    return it.admit(user, cost)
  end

  -- Those whose time has come.
  function it.unpark(most, woken)
    for _, user in ipairs(call('ZRANGEBYSCORE', parked_key, '-inf', now, 'LIMIT', 0, most)) do
      if user == '*' then
        call('ZREM', parked_key, user)
        tell_all_workers()
      elseif it.review(user) then
        woken[user] = (woken[user] or 0) + 1
      end
    end
  end

  -- A task of the user ended. One that is ready stays so, unless its breaker opened. Returns as `review` does.
  function it.freed(user)
    local u = it.user(user)
    local tag = not u.opened and it.tag(u)
    if not tag then return it.review(user) end
    reserve(u, tag)
    return false
  end

  function it.unpark_one(user) call('ZREM', parked_key, user) end

  -- The user whose turn it is, with its tag and its group's: reservations first, else the lowest, and of a group its
  -- lowest. `resting`: users, and how many, that it is not.
  function it.lowest(resting)
    local reserved, reserved_tag = lowest_in(reserved_key, resting)
    if reserved then return reserved, reserved_tag end
    -- As many members as rest may have nobody else.
    local members = call('ZRANGE', ready_key, 0, resting.count, 'WITHSCORES')
    for at = 1, #members, 2 do
      local member, tag = members[at], tonumber(members[at + 1])
      if string.byte(member) == 64 then
        local inner, inner_tag = lowest_in(prefix .. 'ready:' .. string.sub(member, 2), resting)
        if inner then return inner, inner_tag, tag end
      elseif not resting.users[member] then
        return member, tag
      end
    end
  end

  -- The same among the users named, by their place in the list.
  function it.lowest_of(users, resting)
    local best, best_key
    for _, user in ipairs(users) do
      local u = it.user(user)
      local tag = not resting.users[user] and it.tag(u)
      if tag then
        local key
        if call('ZSCORE', reserved_key, user) then
          key = { 0, tag, user, tag, user }
        else
          key = { 1, u.group and tonumber(call('ZSCORE', ready_key, u.member)) or tag, u.member or user, tag, user }
        end
        local at = 1
        while best_key and at < 5 and key[at] == best_key[at] do at = at + 1 end
        if not best_key or key[at] < best_key[at] then best, best_key = user, key end
      end
    end
    return best
  end

  local function refresh(u)
    local tag = call('ZSCORE', reserved_key, u.name) and it.tag(u)
    if tag then call('ZADD', reserved_key, tag, u.name) end
  end

  -- What became known while it ran is charged, or given back, afterwards.
  function it.adjust(u, by)
    local at, of_line = line_of(u)
    if u.group then move_late(ready_key, u.member, u.group_key, by / u.group_weight, clock, mean) end
    move_late(u.ready_key, u.name, user_key(u.name), by / u.weight, at, of_line)
    refresh(u)
  end

  -- The user's weight was another one.
  function it.reweight(u, before)
    rescale(u.ready_key, u.name, user_key(u.name), before / u.weight, (line_of(u)))
    refresh(u)
  end

  function it.reweight_group(member, before)
    local weight = read(member).weight or 1
    rescale(ready_key, member, prefix .. 'group:' .. string.sub(member, 2), before / weight, clock)
  end

  -- Whoever served it out of turn does so no longer.
  function it.forgive(u)
    local _, of_line = line_of(u)
    forgive(u.ready_key, u.name, user_key(u.name), of_line)
    refresh(u)
  end

  -- The breaker of a user opens after so many failures within a window; when its time is over, one success closes it.
  function it.note_end(u, ok)
    local p, key = u.policy, user_key(u.name)
    if not p.breaker_failures then return end
    u.tat = nil -- marks are read anew
    local marks = call('HMGET', key, 'open_until', 'fails', 'fails_since')
    local open_until, fails, since = tonumber(marks[1] or 0), tonumber(marks[2] or 0), tonumber(marks[3] or 0)
    if open_until > now then return end -- a straggler from before
    if open_until > 0 and ok then
      call('HDEL', key, 'open_until', 'fails', 'fails_since')
      return
    end
    if ok then return end
    if now - since > p.breaker_window then fails, since = 0, now end
    fails = fails + 1
    if open_until > 0 or fails >= p.breaker_failures then
      u.opened = true
      keep(key, 'open_until', now + p.breaker_cooldown, 'fails', 0, 'trips', (call('HGET', key, 'trips') or 0) + 1)
    else
      keep(key, 'fails', fails, 'fails_since', since)
    end
  end

  function it.ends_matter(u)
    local p = u.policy
    return p.max_running or p.min_running or p.breaker_failures
  end

  function it.waiting(user)
    return call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user)) +
      call('ZCARD', place_key('scheduled', user)) + call('SCARD', place_key('deferred', user)) +
      call('ZCARD', place_key('held', user))
  end

  -- Whether tasks in line may go for those that are asked for, and so many would fit beside what is not in line.
  function it.may_drop(user, asked)
    local p = it.user(user).policy
    local in_line = call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user))
    return p.mode == 'drop_oldest' and it.waiting(user) - in_line + asked <= p.max_queued
  end

  -- How many tasks are too many, when so many more come.
  function it.excess(user, more)
    local most = it.user(user).policy.max_queued
    return most and math.max(0, it.waiting(user) + more - most) or 0
  end

  -- Seconds (as ms) in which the user's tasks, as fast as they went lately, make room for so many.
  function it.retry_after(user, excess)
    local blob = call('GET', prefix .. 'metrics:' .. user)
    if not blob then return 1000 end
    local m = { struct.unpack(metrics_format(), blob) }
    local span = RECENT_MS * (1 - math.exp((m[11] - now) / RECENT_MS))
    local recent = m[9] * math.exp((m[10] - now) / RECENT_MS)
    if recent * 3600 < 1 then return 60000 end
    return math.max(100, math.min(3600000, math.ceil(excess * span / recent)))
  end

  return it
end
local governed = has_policies and new_government() or nil

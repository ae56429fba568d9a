-- What waits and may not start now: of some users, and under some keys.
--@include base
--@include state
--@include fair
--@include limits

local function new_held_back()
  local it = {}
  local EACH = 100 -- users of each kind; keys; and users that wait for keys

  -- 0: there is none. Else ms at which it ends; -1: somebody ends it.
  function it.pause_of_all()
    local all = governed and governed.all_paused
    return all == true and -1 or all or 0
  end

  -- Those that may be served, group by group, up to so many of each line.
  local is_whole = true
  local function in_line(note)
    local lines_left = EACH
    local function walk(key)
      lines_left = lines_left - 1
      local members = lines_left >= 0 and call('ZRANGE', key, 0, EACH - 1) or {}
      if #members == EACH or lines_left < 0 then is_whole = false end
      for _, member in ipairs(members) do
        if string.byte(member) == 64 then walk(prefix .. 'ready:' .. string.sub(member, 2)) else note(member) end
      end
    end
    walk(ready_key)
  end

  -- Those, however many lines they stand in, and some of those whom a policy of their own, or a moment, holds back.
  local function chosen()
    local users, seen = {}, {}
    local function note_of(most)
      return function(user)
        if seen[user] or user == '*' then return end
        if most == 0 then is_whole = false else most, users[#users + 1], seen[user] = most - 1, user, true end
      end
    end
    in_line(note_of(EACH))
    local note = note_of(2 * EACH)
    local function note_half_of_parked(range)
      for _, user in ipairs(call(range, prefix .. 'parked', 0, EACH / 2 - 1)) do note(user) end
    end
    note_half_of_parked('ZRANGE') -- may start soonest
    note_half_of_parked('ZREVRANGE') -- wait for an event
    for _, user in ipairs(call('ZRANGE', prefix .. 'policy-users', 0, EACH - 1)) do note(user) end
    return users
  end

  local function known_of(user)
    local waits = call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user))
    if waits == 0 then return nil end
    local u = nodes.user(user)
    local p, at = u.policy, gates.at(u)
    if u.is_by_share then at = nil end -- of more slots it may have more
    local left = p.max_running and math.max(0, p.max_running - gates.running(u))
    local allowed = p.rate_us and math.max(0, rate_allows(nodes.marks(u).tat, p.rate_us, p.rate_burst))
    return { waits, waits, at == gates.NEVER and -1 or at or 0, left or '', p.rate_us or '', allowed or '' }
  end

  local function look_at_users(note)
    if not governed then
      is_whole = false
      return
    end
    local users = chosen()
    nodes.read_ahead(users)
    for _, user in ipairs(users) do
      local is_read, known = try_alone(known_of, user)
      if is_read and known then note(known) end
    end
  end

  -- Second: of how many users.
  local function known_under(k, most)
    local waits, free = 0, 0
    local users = call('ZRANGE', prefix .. 'held-users:' .. k, 0, most - 1)
    for _, user in ipairs(users) do
      local tasks = call('ZCARD', place_key('held', user) .. ':' .. k)
      waits = waits + tasks
      if not gate_of(user) then free = free + tasks end -- else it starts later
    end
    return { { waits, free, limited.outlook(k) }, #users }
  end

  -- Tasks that are held under keys. Returns whether there are others.
  local function look_at_keys(note)
    if not limited then return false end
    local left, keys = EACH, call('ZRANGE', prefix .. 'held', 0, EACH - 1)
    for _, k in ipairs(keys) do
      if left <= 0 then return true end
      local is_read, known = try_alone(known_under, k, left)
      if is_read then note(known[1]) end
      left = left - (is_read and known[2] or 1)
    end
    return left <= 0 or #keys == EACH
  end

  -- {how many tasks wait of which nothing is known, of each user and key: {tasks, of these those that nothing else holds,
  -- ms at which they may start or 0 for now or -1 where that takes an event, how many more may run or '', us between two
  -- starts or '', how many may start at once or ''}}
  function it.look()
    local found, seen = {}, 0
    local function note(known)
      found[#found + 1] = known
      seen = seen + known[1]
    end
    look_at_users(note)
    local has_more_keys = look_at_keys(note)
    if is_whole then return { has_more_keys and 1 or 0, unpack(found) } end
    local totals = call('HMGET', state_key, 'critical', 'normal')
    return { math.max(0, (totals[1] or 0) + (totals[2] or 0) - seen), unpack(found) }
  end

  -- Whether the next claim has something to do first, by which more may start.
  function it.is_changing()
    local counts_anew, looks_anew = unpack(call('HMGET', state_key, 'recount', 'relook'))
    return sweep_asked or has_damaged or counts_anew or looks_anew or call('EXISTS', prefix .. 'announcements') == 1
  end

  return it
end

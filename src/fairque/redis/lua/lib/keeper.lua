-- Workers that go to sleep, or are no longer idle, and the moment that one of them keeps.
--@include moments
--@include expiry

local function new_keeping(worker)
  local it = {}

  -- Of all sets of moments, with a user that it concerns.
  local function next_moment()
    local first = call('ZRANGE', due_key, 0, 0, 'WITHSCORES')
    local at, user = tonumber(first[2] or math.huge), first[1]
    if has_policies then
      first = call('ZRANGE', prefix .. 'parked', 0, 0, 'WITHSCORES')
      if first[1] and tonumber(first[2]) < at then at, user = tonumber(first[2]), first[1] end
    end
    if has_damaged then
      first = call('ZRANGE', prefix .. 'damaged', 0, 0, 'WITHSCORES')
      if first[1] and tonumber(first[2]) < at then at, user = tonumber(first[2]), first[1] end
    end
    if has_expiring then
      local expires = deadlines.next_ms()
      if expires and expires < at then at, user = expires, call('ZRANGE', prefix .. 'expiring', 0, 0)[1] end
    end
    if has_limits then
      first = call('ZRANGE', prefix .. 'held', 0, 0, 'WITHSCORES')
      if first[1] and tonumber(first[2]) < at then
        at, user = tonumber(first[2]), call('ZRANGE', prefix .. 'held-users:' .. first[1], 0, 0)[1]
      end
      first = call('ZRANGE', prefix .. 'exchanges', 0, 0, 'WITHSCORES')
      local told_at = math.max(tonumber(first[2] or math.huge), now + SECOND_MS) -- who claimed last was told of what is over
      if told_at < at then at, user = told_at, nil end
    end
    return at, user
  end

  local function find_second(user, second)
    if second and second ~= worker and reaches(second) then return end
    call('HDEL', state_key, 'second')
    wake(user, 1, worker)
  end

  -- The worker goes to sleep. Returns until when: the next moment, a little later, or for ever when others see to it.
  function it.keep()
    soonest = math.huge -- this worker knows
    local at, user = next_moment()
    local kept_at, keeper = moment_kept()
    local second = call('HGET', state_key, 'second')
    if at == math.huge then
      if keeper == worker then call('HDEL', state_key, 'keeper') end
      return at
    end
    if kept_at and kept_at <= at and keeper ~= worker then
      if second and second ~= worker then return math.huge end
      call('HSET', state_key, 'second', worker)
      return at + SECOND_MS
    end
    call('HSET', state_key, 'keeper', string.format('%d ', at) .. worker)
    if not kept_at or at < kept_at then
      find_second(user, second)
    elseif second == worker then
      call('HDEL', state_key, 'second')
    end
    return at
  end

  -- True: it was one of the two.
  function it.forget()
    -- Also one that is too late: the second looks when the moment of the keeper is over.
    local keeper = string.match(keeper_known, ' (.*)$')
    local field = keeper == worker and 'keeper' or call('HGET', state_key, 'second') == worker and 'second'
    if field then call('HDEL', state_key, field) end
    return field
  end

  -- The worker has no time for it any more.
  function it.hand_on()
    if not it.forget() then return end
    local at, user = next_moment()
    local second = at < math.huge and call('HGET', state_key, 'second')
    if at < math.huge and not (second and reaches(second)) then wake(user, 1, worker) end
  end

  return it
end

#!lua flags=no-writes
-- What is known of users, most recently active first, or of the ones named.
-- KEYS[1]  state
-- Returns  {now, policy of '*', metrics of the queue, per user that can be read: {user, critical, normal, started critical, started normal,
--          scheduled, deferred, held, dead letters, ready tag or '', seen or 0, parked until or '', breaker open until or
--          '', policy, metrics, per place where one waits for its turn, of the next one: {score, head of
--          its body, queued or ''}, bytes used or ''}}
-- Cost     O(users returned)
--@include base
--@include moved
--@include bytes_used
--@arguments
refuse_all_moved(named)
local names = #named > 0 and named or call('ZREVRANGE', users_key, offset, offset + most - 1)

local function ready_set(policy)
  local group = policy and cmsgpack.unpack(policy).group
  return group and prefix .. 'ready:' .. group or ready_key
end

local function next_ones(user)
  local found = {}
  for _, place in ipairs({ 'critical:', 'normal:', 'held:' }) do
    local first = call('ZRANGE', prefix .. place .. user, 0, 0, 'WITHSCORES')
    if first[1] then
      local head = redis.pcall('GETRANGE', body_key(user, first[1]), 0, 17)
      found[#found + 1] = { first[2], type(head) == 'string' and head or '',
        call('HGET', task_key(user, first[1]), 'queued') or '' }
    end
  end
  return found
end

local function parked_until(user)
  local at = call('ZSCORE', prefix .. 'parked', user)
  return at ~= 'inf' and at or ''
end

local function known_of(user)
  local policy = call('GET', prefix .. 'policy:' .. user)
  return {
    user,
    call('ZCARD', place_key('critical', user)),
    call('ZCARD', place_key('normal', user)),
    call('XLEN', stream_key('critical', user)),
    call('XLEN', stream_key('normal', user)),
    call('ZCARD', place_key('scheduled', user)),
    call('SCARD', place_key('deferred', user)),
    call('ZCARD', place_key('held', user)),
    call('ZCARD', place_key('dead', user)),
    call('ZSCORE', ready_set(policy), user) or '',
    call('ZSCORE', users_key, user) or '0',
    parked_until(user),
    call('HGET', prefix .. 'user:' .. user, 'open_until') or '',
    policy or '',
    call('GET', prefix .. 'metrics:' .. user) or '',
    next_ones(user),
    bytes_used(user),
  }
end

local found = { now, call('GET', prefix .. 'policy:*') or '', call('GET', prefix .. 'metrics:*') or '' }
for _, user in ipairs(names) do
  local is_read, known = try_alone(known_of, user)
  if not is_read and strict then error(known, 0) end
  if is_read then found[#found + 1] = known end
end
return found

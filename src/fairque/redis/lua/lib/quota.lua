-- Quotas: how many tasks of a user may wait.
function governing.waiting(user)
  return call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user)) +
    call('ZCARD', place_key('scheduled', user)) + call('SCARD', place_key('deferred', user)) +
    call('ZCARD', place_key('held', user))
end

-- Whether tasks in line may go for those that are asked for, and so many would fit beside what is not in line.
function governing.may_drop(user, asked)
  local p = nodes.user(user).policy
  local in_line = call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user))
  return p.mode == 'drop_oldest' and choice.waiting(user) - in_line + asked <= p.max_queued
end

-- How many tasks are too many, when so many more come.
function governing.excess(user, more)
  local most = nodes.user(user).policy.max_queued
  return most and math.max(0, choice.waiting(user) + more - most) or 0
end

-- Until when the user, or everybody, is paused: 0 where nobody is, -1 without an end.
local function pause_of(user)
  local own = rawget(nodes.user(user).policy, 'paused')
  local all = choice.all_paused
  if own == true or all == true then return -1 end
  return math.max(own or 0, all or 0)
end

-- In how many ms the user's tasks, as fast as they went lately, make room for so many, or its pause ends; -1: nobody knows.
function governing.retry_after(user, excess)
  local paused = pause_of(user)
  if paused < 0 then return -1 end
  if paused > now then return paused - now end
  local blob = call('GET', prefix .. 'metrics:' .. user)
  if not blob then return 1000 end
  local recent, span = recent_services(blob)
  if recent * 3600 < 1 then return 60000 end
  return math.max(100, math.min(3600000, math.ceil(excess * span / recent)))
end

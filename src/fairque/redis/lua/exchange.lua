#!lua
-- Places of limits over all users: what this partition has to ask the homes of keys, and as their home to tell others.
-- What nobody needs here is given back by that.
-- KEYS[1]  state
-- Returns  {us of its clock, asks: see Ask, {partition, {what it is told: see Told}} per partition}
-- Cost     O(most (partitions + log keys)): those keys of which there is something to be said
--@include alive
--@include lending
--@arguments
limiting()
local loans = new_loans()
local lending, asks, woken = new_lending(), {}, {}
local USERS, KEYS_OF_A_USER = 20, 3

-- What is over of the lease of a rate. Returns the lease that is given back, 0 for none, and in how many us the rate opens.
local function give_rate_back(k, l, loan, need)
  if loan.lease == 0 then return 0, 0 end
  local is_live = loan.lease_until > now_us
  if is_live and loan.starts > 0 and need > 0 and l and l.rate_us then return 0, 0 end
  call('HDEL', loans.loan_key(k), 'lease', 'lease_until', 'starts')
  if is_live and l and l.rate_us then return loan.lease, math.max(0, l.tat - now_us) end
  return 0, 0
end

-- Places that are not used and that others wait for, or nobody here does.
local function to_give_back(l, loan, idle, need, is_outdated)
  if not (l and l.most) or is_outdated or need == 0 then return idle end
  if loan.keep < 0 then return 0 end
  return math.max(0, math.min(idle - math.min(idle, loan.fresh), loan.granted - loan.returned - loan.keep))
end

local function ask(k)
  limited.forget(k)
  local l, loan = limited.limit(k), loans.loan(k)
  local is_outdated = l and l.most and loans.is_outdated(l, loan)
  local used = is_outdated and limited.running(k) or limited.used(k)
  local need, users = 0, 0
  if l and not l.paused and not l.uncounted then need, users = limited.need(k) end
  local places = loan.granted - loan.returned
  local idle = math.max(0, places - used)
  local back = to_give_back(l, loan, idle, need, is_outdated)
  local lease, left_us = give_rate_back(k, l, loan, need)
  local more = l and l.most and math.max(0, need - (idle - back)) or 0
  local starts = l and l.rate_us and math.max(0, need - (loan.lease > 0 and lease == 0 and loan.starts or 0)) or 0
  local excess = l and l.most and math.max(0, used - places) or 0
  if back > 0 then call('HSET', loans.loan_key(k), 'returned', loan.returned + back) end
  if is_outdated then -- nothing is left that does not run
    call('HSET', loans.loan_key(k), 'of', l.most, 'changed', string.format('%.0f', l.changed))
  end
  limited.forget(k)
  if loan.epoch == 0 and more + starts + excess + lease + loan.asked + loan.excess == 0 then
    return loans.rest(k, loan)
  end
  call('HSET', loans.loan_key(k), 'asked', more + starts > 0 and 1 or 0, 'excess', excess)
  if loan.since == 0 then call('HSET', loans.loan_key(k), 'since', now_text) end
  loans.put_off(k, now + loans.retry_ms(loan.since > 0 and loan.since or now, loans.RETRY_MS))
  local home = loans.home_of(k)
  asks[#asks + 1] = { home, k, loan.epoch, loan.granted, loan.returned + back, loans.closed(home), more, starts, users, excess,
    lease, left_us, l and l.changed or 0 }
end

local function look(k)
  if not loans.is_divided then return loans.over(k) end
  if not loans.is_home(k) then return ask(k) end
  lending.share_out(k)
  limited.let_in(k, woken)
end

-- Of more than one call looks at, half are of some users and some limits by chance: nobody's many keys keep those of others
-- waiting.
local function some_of_each(due)
  local chosen, seen = {}, {}
  local function choose(k)
    if not seen[k] then chosen[#chosen + 1], seen[k] = k, true end
  end
  local function choose_due(k)
    local at = #chosen < most / 2 and tonumber(call('ZSCORE', loans.exchanges_key, k) or nil)
    if at and at <= now then choose(k) end
  end
  for _, k in ipairs(call('ZRANDMEMBER', prefix .. 'limit-keys', USERS)) do choose_due(k) end
  for _, user in ipairs(call('ZRANDMEMBER', prefix .. 'held-turns', USERS)) do
    local keys = redis.pcall('ZRANDMEMBER', prefix .. 'held-keys:' .. user, KEYS_OF_A_USER)
    for _, k in ipairs(keys.err and {} or keys) do choose_due(k) end
  end
  for _, k in ipairs(due) do
    if #chosen < most then choose(k) end
  end
  return chosen
end

local due = call('ZRANGEBYSCORE', loans.exchanges_key, '-inf', now, 'LIMIT', 0, most)
for _, k in ipairs(#due < most and due or some_of_each(due)) do
  local is_done, failure = try_alone(look, k)
  if not is_done then -- a key of it is damaged: the others are looked at
    call('ZADD', loans.exchanges_key, now + loans.LONGEST_MS, k)
    redis.log(redis.LOG_WARNING, 'fairque: ' .. text_of(failure))
  end
end
for user, tasks in pairs(woken) do wake(user, tasks) end
save_state()
local tells = {}
for partition, told in pairs(lending.tells) do tells[#tells + 1] = { partition, told } end
return { string.format('%.0f', now_us), asks, tells }

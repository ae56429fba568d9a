#!lua
-- A partition hears what homes of keys tell it of what it has borrowed, and lets in who may start with that.
-- KEYS[1]  state
-- Returns  1 where there is more to ask at once, else 0
-- Cost     O(tells log users), and of each what is let in
--@include alive
--@include limits
--@include loans
--@arguments
limiting()
local loans = new_loans()
local woken, asks_again = {}, 0

-- What comes late, or twice, tells nothing new.
local function take_places(loan, told)
  --@fields Told told: key epoch granted returned over most changed
  local home = loans.home_of(key)
  if over == 1 then
    if loan.epoch == epoch then loan.epoch, loan.granted, loan.returned, loan.fresh = 0, 0, 0, 0 end
    loans.close(home, epoch)
    return false
  end
  if epoch == 0 or epoch < loan.epoch then return false end
  if epoch > loan.epoch then
    if epoch <= loans.closed(home) then return granted > returned end -- never, and it is to know that
    loan.epoch, loan.granted, loan.returned, loan.fresh, loan.of, loan.changed = epoch, 0, 0, 0, 0, changed
  end
  if granted > loan.granted and changed ~= loan.changed then loan.changed = 0 end -- granted by what it had been
  loan.fresh = loan.fresh + math.max(0, granted - loan.granted)
  if granted > loan.granted then loan.since = now end
  loan.granted, loan.returned = math.max(loan.granted, granted), math.max(loan.returned, returned)
  loan.of = math.max(loan.of, most)
  return false
end

local function take_rate(l, loan, told)
  --@fields Told told: lease starts left_us asked_us
  if lease <= loan.seen or asked_us + loans.LEASE_US <= now_us or not (l and l.rate_us) then return end
  loan.lease, loan.lease_until, loan.starts = lease, asked_us + loans.LEASE_US, starts
  loan.seen, loan.seen_until = lease, loan.lease_until
  limited.set_tat(l, now_us + left_us)
end

local function accept(told)
  --@fields Told told: key keep waits poke
  if not loans.is_divided or loans.is_home(key) then return end
  local loan = loans.loan(key)
  local is_refused = take_places(loan, told)
  loan.keep, loan.asked = keep, waits
  limited.forget(key)
  take_rate(limited.limit(key), loan, told)
  loans.save(key, loan)
  limited.forget(key)
  limited.let_in(key, woken)
  limited.forget(key)
  local l, need = limited.limit(key), 0
  loan = loans.loan(key)
  if l and not l.paused and not l.uncounted then need = limited.need(key) end
  local idle = loan.granted - loan.returned - limited.used(key)
  local goes_back = l and l.most and loans.is_outdated(l, loan) and loan.granted - loan.returned > limited.running(key)
  if is_refused or goes_back or poke == 1 or (need > 0 and waits == 0 and loan.lease == 0 and not (l.most and loan.epoch == 0)) then
    asks_again = 1
    return loans.put_off(key, now)
  end
  if need > 0 then
    if loan.since == 0 then
      loan.since = now
      call('HSET', loans.loan_key(key), 'since', now_text)
    end
    return loans.put_off(key, now + loans.retry_ms(loan.since, 4 * loans.RETRY_MS))
  end
  call('HDEL', loans.loan_key(key), 'since')
  if idle > 0 or loan.lease > 0 then
    if keep >= 0 and idle > 0 then asks_again = 1 end
    return loans.put_off(key, keep >= 0 and idle > 0 and now or now + loans.LINGER_MS)
  end
  loans.rest(key, loan)
end

for _, told in ipairs(tells) do
  --@fields Told told: key
  local is_done, failure = try_alone(accept, told)
  if not is_done then redis.log(redis.LOG_WARNING, 'fairque: ' .. key .. ': ' .. text_of(failure)) end
end
for user, tasks in pairs(woken) do wake(user, tasks) end
save_state()
return asks_again

-- Limits over all users, in a queue with partitions. Each key has one partition for its home, by a hash of it: all places
-- are there, and lent to where tasks wait. What is lent is told by two numbers that only grow: `granted`, which the home
-- alone raises, and `returned`, which the borrower alone raises (a bounded counter: Balegas et al., SRDS 2015). So whoever
-- carries them may come late, twice or never: a borrower never knows more of `granted`, nor the home of `returned`, than
-- there is, and no place is ever in two partitions. An `epoch` names a loan from its first place to its last; it is the
-- home's, and never used again. A rate is lent as a whole, to one partition at a time, for a second at most.
-- Where others wait, a place that is free again is no longer one's own, beyond a share that may be kept: it goes to whose
-- turn it is. One that was given by turn (`fresh`) is good for one start.
-- What a partition that is gone has borrowed can be forfeited: its homes forget the loan, whose epoch is never taken again. It
-- learns of that before it serves, as that has a revision, and what it has is outdated then, as by a limit that changed.
-- loan:<k>      hash  of a borrower: epoch, granted, returned; of: the most by which it was granted, and changed: as
--                     the limit was when it asked; keep: how many it may
--                     keep while others wait, -1 where none do; fresh; since: ms when it began to ask; asked: 1, the home
--                     knows that it waits; excess: what the home knows to run without a place; lease, lease_until
--                     (us), starts: it has the rate, and how many may still start; seen, seen_until: its last lease
-- loans:<k>     hash  of the home. <partition>: a row, see ROW; own, keep, fresh: its own places while others wait; waits,
--                     rate_waits: how many partitions do; clock, pass: turns; holder, lease, lease_until, starts: of the
--                     rate; poked, poked_at: who was told that its turn at the rate has come
-- loans-closed  hash  home → the last epoch of a loan of it that is over
-- exchanges     zset  keys of which there is something to be asked or told → ms when
--@include base
--@include state
--@include moments

local function new_loans()
  local it = {}
  local exchanges_key = prefix .. 'exchanges'
  it.exchanges_key = exchanges_key
  local said = call('HMGET', prefix .. 'settings', 'partition', 'partitions')
  local parts = tonumber(said[2] or 1)
  it.own = tonumber(said[1] or nil)
  it.is_divided = it.own ~= nil and parts > 1
  it.LEASE_US = 1000000
  it.LINGER_MS = 1000 -- for which an idle place is kept that nobody waits for
  it.RETRY_MS, it.LONGEST_MS, it.EACH_MS = 250, 15000, 5 -- until who asked asks again
  local ROW = { 'epoch', 'granted', 'returned', 'need', 'users', 'pass', 'excess', 'keep', 'rate_need', 'changed' }
  local LOAN = { 'epoch', 'granted', 'returned', 'of', 'changed', 'keep', 'fresh', 'since', 'lease', 'lease_until', 'starts', 'seen',
    'seen_until', 'asked', 'excess' }
  local LEDGER = { 'own', 'keep', 'fresh', 'waits', 'rate_waits', 'clock', 'pass', 'holder', 'lease', 'lease_until', 'starts',
    'poked', 'poked_at' }

  function it.loan_key(k) return prefix .. 'loan:' .. k end
  function it.ledger_key(k) return prefix .. 'loans:' .. k end
  function it.home_of(k) return tonumber(string.sub(redis.sha1hex(k), 1, 8), 16) % parts end
  function it.is_home(k) return it.home_of(k) == it.own end

  function it.loan(k)
    local fields, loan = call('HMGET', it.loan_key(k), unpack(LOAN)), {}
    for at, name in ipairs(LOAN) do loan[name] = tonumber(fields[at] or nil) or (name == 'keep' and -1 or 0) end
    return loan
  end

  function it.new_row() return { epoch = 0, granted = 0, returned = 0, need = 0, users = 0, pass = 0, excess = 0, keep = -1, rate_need = 0, changed = 0 } end

  local function row_in(text)
    local row, at = {}, 0
    for number in string.gmatch(text, '%S+') do
      at = at + 1
      row[ROW[at]] = tonumber(number)
    end
    return row
  end

  function it.row_text(row)
    local texts = {}
    for at, name in ipairs(ROW) do texts[at] = string.format('%.17g', row[name]) end
    return table.concat(texts, ' ')
  end

  -- Places that are not at home: `excess` is what runs elsewhere without one, as there was no limit when it began.
  function it.lent_to(row) return row.granted - row.returned + row.excess end

  function it.ledger(k)
    local ledger, flat = { rows = {}, lent = 0 }, call('HGETALL', it.ledger_key(k))
    for _, name in ipairs(LEDGER) do ledger[name] = 0 end
    for at = 1, #flat, 2 do
      local partition = tonumber(flat[at])
      if partition then
        local row = row_in(flat[at + 1])
        ledger.rows[partition], ledger.lent = row, ledger.lent + it.lent_to(row)
      else
        ledger[flat[at]] = tonumber(flat[at + 1])
      end
    end
    return ledger
  end

  -- The limit is another one since: what does not run goes back, as it may be too many now.
  function it.is_outdated(l, loan) return l.most < loan.of or loan.changed ~= l.changed end

  local function by_turn(l, of) return math.max(of.keep, l.running + l.let_in) + of.fresh end

  -- Of the limit of a key: what of it this partition may use.
  function it.apply(l)
    l.most, l.loans = l.max, it
    l.changed = l.changed + forfeited_at -- both only grow
    if it.is_home(l.key) then
      local ledger = it.ledger(l.key)
      l.ledger = ledger
      if l.max then
        l.max = l.max - ledger.lent
        if ledger.waits > 0 then l.max = math.min(l.max, ledger.own, by_turn(l, ledger)) end
      end
      if not l.rate_us then return end
      if ledger.lease > 0 and ledger.lease_until > now_us then
        l.starts = ledger.holder == it.own and ledger.starts or 0
        return
      end
      -- Who had it has not said how much it used.
      if ledger.lease > 0 and ledger.holder ~= it.own then
        l.tat = math.max(l.tat, ledger.lease_until) + ledger.starts * l.rate_us
      end
      if ledger.rate_waits > 0 then l.starts = 0 end
    else
      local loan = it.loan(l.key)
      l.loan = loan
      if l.max then
        l.max = loan.granted - loan.returned
        if loan.keep >= 0 then l.max = math.min(l.max, by_turn(l, loan)) end
        if it.is_outdated(l, loan) then l.max = math.min(l.max, l.running) end
      end
      if l.rate_us then l.starts = loan.lease_until > now_us and loan.starts or 0 end
    end
  end

  -- There is something to ask or to tell.
  function it.note(k, at)
    call('ZADD', exchanges_key, 'LT', at, k)
    note_moment(at, nil)
  end

  -- Since places were asked for.
  local function has_changed(l) return l.most and it.is_outdated(l, l.loan) end

  -- A task waits here. Where the limit has changed since it was asked for places, it is asked again: by turns of those who wait
  -- here, as its home comes to it after all other keys.
  function it.wants(l)
    if l.ledger then
      if l.ledger.lent > 0 or (l.ledger.lease > 0 and l.ledger.holder ~= it.own) then it.note(l.key, now) end
    elseif l.loan.since == 0 then
      l.loan.since = now
      call('HSET', it.loan_key(l.key), 'since', now_text)
      it.note(l.key, now)
    elseif has_changed(l) then
      it.note(l.key, now)
    end
  end

  -- Whether something is done for those who wait here.
  function it.asks(l)
    if l.ledger then return call('ZSCORE', exchanges_key, l.key) ~= false end
    return l.loan.since > 0 and not has_changed(l)
  end

  -- Places have become free: those that others wait for go to them.
  function it.freed(k, l)
    if not (l and l.loans) then -- nothing limits it any more, or a pause alone
      if call('EXISTS', it.loan_key(k), it.ledger_key(k)) > 0 then it.note(k, now) end
    elseif l.ledger then
      if l.ledger.waits > 0 then it.note(k, now) end
    elseif l.loan.excess > 0 then
      it.note(k, now)
    elseif l.loan.granted > l.loan.returned then
      local is_asked_for = l.loan.keep >= 0 and l.loan.granted - l.loan.returned > l.loan.keep
      it.note(k, is_asked_for and now or now + it.LINGER_MS)
    end
  end

  -- A task takes a place.
  function it.take(l)
    local of = l.ledger or l.loan
    if of.fresh <= 0 then return end
    of.fresh = of.fresh - 1
    call('HINCRBY', l.ledger and it.ledger_key(l.key) or it.loan_key(l.key), 'fresh', -1)
  end

  -- One more has started by a rate that is lent.
  function it.note_start(l)
    if l.ledger and l.ledger.lease > 0 and not l.starts then -- over: what it may have used is in the time that is written
      call('HDEL', it.ledger_key(l.key), 'holder', 'lease', 'lease_until', 'starts')
    end
    if not l.starts then return end
    l.starts = l.starts - 1
    call('HINCRBY', l.ledger and it.ledger_key(l.key) or it.loan_key(l.key), 'starts', -1)
    if l.starts <= 0 then it.note(l.key, now) end
  end

  -- Until who waits asks again, as what it was told may have been lost: the more rarely the longer it waits, and the more keys
  -- there are, so that the many of one user cost others little.
  local many
  function it.retry_ms(since, least)
    many = many or call('ZCARD', exchanges_key)
    return math.max(least, math.min(it.LONGEST_MS, now - since), many * it.EACH_MS)
  end

  function it.put_off(k, at)
    call('ZADD', exchanges_key, at, k)
    note_moment(at, nil)
  end

  function it.save(k, loan)
    local flat = {}
    for _, name in ipairs(LOAN) do flat[#flat + 1], flat[#flat + 2] = name, string.format('%.17g', loan[name]) end
    call('HSET', it.loan_key(k), unpack(flat))
  end

  -- The last epoch of a loan of that home that is over.
  local closed_key = prefix .. 'loans-closed'
  function it.closed(home) return tonumber(call('HGET', closed_key, home) or 0) end

  function it.close(home, epoch)
    if epoch > it.closed(home) then call('HSET', closed_key, home, string.format('%.0f', epoch)) end
  end

  -- Nothing is to be asked. What it has of places is in use; of nothing nothing is kept, but its last lease, that it is not
  -- taken twice.
  function it.rest(k, loan)
    if loan.epoch > 0 or loan.excess > 0 then return it.over(k) end
    if loan.seen_until > now_us then return it.put_off(k, math.ceil(loan.seen_until / 1000) + 1) end
    call('DEL', it.loan_key(k))
    it.over(k)
  end

  function it.over(k) call('ZREM', exchanges_key, k) end

  return it
end

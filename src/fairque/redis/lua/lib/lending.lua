-- The home of keys: who has how many places, and whose turn it is. Turns go round among the partitions in which tasks
-- wait, the home among them, each by how many users of it wait. See lib/loans.lua.
--@include base
--@include state
--@include limits
--@include loans

local function new_lending()
  local it, loans = {}, new_loans()
  limiting()
  local KEPT_RATE_US = 250000 -- for which starts are given at once
  local POKED_US = 200000 -- until one whose turn it was at a rate is passed over
  local STEPS = 64
  local tells, last_epoch = {}, nil
  it.tells = tells

  -- Never again.
  local function next_epoch(beyond)
    last_epoch = math.max(now_us, (last_epoch or tonumber(call('HGET', state_key, 'loan_epoch') or 0)) + 1, beyond + 1)
    call('HSET', state_key, 'loan_epoch', string.format('%.0f', last_epoch))
    return last_epoch
  end

  local function save_row(k, partition, row)
    if row.granted == row.returned then row.epoch, row.granted, row.returned = 0, 0, 0 end -- that loan is over
    if row.epoch == 0 and row.need == 0 and row.rate_need == 0 and row.excess == 0 then
      call('HDEL', loans.ledger_key(k), partition)
    else
      call('HSET', loans.ledger_key(k), partition, loans.row_text(row))
    end
  end

  -- What a partition says of its loan, and that it waits. Returns whether that loan is over.
  local function hear_of_loan(row, ask)
    --@fields Ask ask: epoch granted returned closed
    if epoch == 0 then
      if row.epoch > 0 and row.epoch <= closed then row.epoch, row.granted, row.returned = 0, 0, 0 end -- it takes that never
      return false
    end
    if row.epoch == epoch then
      row.granted, row.returned = math.max(row.granted, granted), math.max(row.returned, returned)
    elseif epoch > math.max(row.epoch, tonumber(call('HGET', state_key, 'loan_epoch') or 0)) then -- it was forgotten here
      row.epoch, row.granted, row.returned = epoch, granted, returned
      call('HSET', state_key, 'loan_epoch', string.format('%.0f', epoch))
    else
      return true
    end
    return row.granted == row.returned
  end

  -- The rate comes back, with what is left of its pause.
  local function take_rate_back(k, partition, ask)
    --@fields Ask ask: lease left_us
    local known = call('HMGET', loans.ledger_key(k), 'lease', 'holder')
    if lease == 0 or tonumber(known[1] or nil) ~= lease or tonumber(known[2] or nil) ~= partition then return end
    call('HDEL', loans.ledger_key(k), 'holder', 'lease', 'lease_until', 'starts')
    limited.forget(k)
    local l = limited.limit(k)
    if l and l.rate_us then limited.set_tat(l, now_us + left_us) end
  end

  -- Returns whether what it has is over.
  function it.hear(partition, ask)
    --@fields Ask ask: key epoch granted need rate_need users excess closed changed
    local ledger = loans.ledger(key)
    local row = ledger.rows[partition] or loans.new_row()
    local is_over = hear_of_loan(row, ask)
    if row.need == 0 and row.rate_need == 0 then row.pass = math.max(row.pass, ledger.clock) end
    local under_way = row.granted - (row.epoch == epoch and granted or 0) -- it had not heard of these
    row.need, row.rate_need, row.users, row.excess = math.max(0, need - under_way), rate_need, users, excess
    row.changed = changed
    take_rate_back(key, partition, ask)
    save_row(key, partition, row)
    limited.forget(key)
    return is_over
  end

  -- Returns how many places it had.
  function it.forfeit(k, partition)
    local row = loans.ledger(k).rows[partition]
    if not row then return 0 end
    call('HDEL', loans.ledger_key(k), partition)
    limited.forget(k)
    return loans.lent_to(row)
  end

  local function tell(k, partition, row, l, beside)
    local t = { k, row.epoch, row.granted, row.returned, 0, l and l.most or 0, row.keep, row.need > 0 and 1 or 0, 0, 0, 0, 0, 0, row.changed }
    for at, value in pairs(beside or {}) do t[at] = value end
    tells[partition] = tells[partition] or {}
    table.insert(tells[partition], t)
  end

  -- That loan is over, or never was.
  function it.tell_over(k, partition, epoch)
    local row = loans.new_row()
    row.epoch = epoch
    tell(k, partition, row, nil, { [5] = 1 })
  end

  -- Who waits: {pass, need, users, row, partition}; the home has no row.
  local function claimants(ledger, needs, own_need, own_users)
    local found = {}
    for partition, row in pairs(ledger.rows) do
      if row[needs] > 0 then
        found[#found + 1] = { pass = row.pass, need = row[needs], users = math.max(1, row.users), row = row, partition = partition }
      end
    end
    if own_need > 0 then
      found[#found + 1] = { pass = math.max(ledger.pass, ledger.clock), need = own_need, users = math.max(1, own_users), partition = loans.own }
    end
    table.sort(found, function(a, b) return a.pass < b.pass or (a.pass == b.pass and a.partition < b.partition) end)
    return found
  end

  local function lowest(found)
    local first
    for _, each in ipairs(found) do
      if each.need > 0 and (not first or each.pass < first.pass) then first = each end
    end
    return first
  end

  local function has_turn(ledger, each, many)
    ledger.clock = math.max(ledger.clock, each.pass)
    each.pass = each.pass + many / each.users
    if each.row then each.row.pass = each.pass else ledger.pass = each.pass end
  end

  local function share_places(l, ledger, own_need, own_users, asker)
    local used, lent, users, is_waited_for = l.running + l.let_in, 0, 0, false
    for _, row in pairs(ledger.rows) do
      lent, is_waited_for = lent + loans.lent_to(row), is_waited_for or row.need > 0
    end
    local found = claimants(ledger, 'need', own_need, own_users)
    local before = ledger.waits > 0 and math.max(used, ledger.own) or used
    for _, row in pairs(ledger.rows) do users = users + row.users end
    users = users + own_users
    ledger.keep = users > 0 and math.floor(l.most * own_users / users) or 0
    local own = math.max(used, math.min(before, math.max(ledger.keep, used) + ledger.fresh))
    local pool = is_waited_for and l.most - lent - own or 0 -- else the home takes what it wants
    local has = is_waited_for and own - used or l.most - lent - used
    for _, each in ipairs(found) do
      if not each.row then each.need = math.max(0, each.need - math.max(0, has)) end
    end
    while pool > 0 do
      local each = lowest(found)
      if not each then break end
      local many = math.min(pool, each.need, math.max(1, math.floor(pool / STEPS)))
      pool, each.need = pool - many, each.need - many
      has_turn(ledger, each, many)
      if each.row then
        local row = each.row
        if row.epoch == 0 then row.epoch = next_epoch(row.closed or 0) end
        row.granted, row.need, row.is_changed = row.granted + many, each.need, true
      else
        own, ledger.fresh = own + many, ledger.fresh + many
      end
    end
    if pool > 3 and asker and asker.granted > asker.returned then -- it will want more
      asker.granted, asker.is_changed = asker.granted + math.min(math.floor(pool / 4), asker.granted - asker.returned), true
    end
    ledger.own, ledger.waits = own, 0
    local is_short = lowest(found) ~= nil
    for _, row in pairs(ledger.rows) do
      if row.need > 0 then ledger.waits = ledger.waits + 1 end
      local keep = is_short and math.floor(l.most * row.users / math.max(1, users)) or -1
      if keep ~= row.keep then row.keep, row.is_changed = keep, true end
    end
    if ledger.waits == 0 then ledger.own, ledger.fresh = 0, 0 end
  end

  local function free_rate(k, ledger)
    ledger.lease, ledger.holder, ledger.starts, ledger.lease_until = 0, 0, 0, 0
    call('HDEL', loans.ledger_key(k), 'holder', 'lease', 'lease_until', 'starts')
  end

  -- There is no rate any more: nobody waits for it, and who has it is remembered while it may be used. Returns as share_rate.
  local function end_rate(k, ledger)
    ledger.rate_waits = 0
    if ledger.lease == 0 then return nil end
    if ledger.lease_until > now_us then return math.ceil(ledger.lease_until / 1000) end
    free_rate(k, ledger)
  end

  local function end_places(ledger) ledger.own, ledger.keep, ledger.fresh, ledger.waits = 0, 0, 0, 0 end

  local function give_rate(l, ledger, each, asked_us)
    local many = math.min(each.need, math.max(1, rate_allows(l.tat, l.rate_us, l.burst) + math.floor(KEPT_RATE_US / l.rate_us)))
    ledger.holder, ledger.lease, ledger.starts = each.partition, next_epoch(0), many
    ledger.lease_until, ledger.poked, ledger.poked_at = now_us + loans.LEASE_US, -1, 0
    has_turn(ledger, each, many)
    if not each.row then return end
    each.row.rate_need = math.max(0, each.row.rate_need - many)
    each.row.is_changed = true
    each.row.beside = { [9] = ledger.lease, [10] = many, [11] = math.max(0, l.tat - now_us), [12] = asked_us }
  end

  -- Returns the ms of the next look at the rate, or nil.
  local function share_rate(k, l, ledger, own_need, own_users, asker, asked_us)
    if ledger.lease > 0 then
      local is_own = ledger.holder == loans.own
      local is_done = ledger.lease_until <= now_us or (is_own and (ledger.starts <= 0 or own_need == 0))
      if not is_done then return math.ceil(ledger.lease_until / 1000) end
      if not is_own then limited.set_tat(l, l.tat) end -- what it may have used is in it
      free_rate(k, ledger)
    end
    local found, given = claimants(ledger, 'rate_need', own_need, own_users), nil
    ledger.rate_waits = 0
    if not found[1] or (not found[2] and not found[1].row) then return nil end -- nobody else: the home has it
    local opens = math.ceil(rate_opens_at(l.tat, l.rate_us, l.burst) / 1000)
    for _, each in ipairs(found) do
      if opens > now then break end
      if not each.row or each.partition == asker then
        given = each
        break
      end
      if ledger.poked ~= each.partition then
        ledger.poked, ledger.poked_at = each.partition, now_us
        each.row.is_changed, each.row.beside = true, { [13] = 1 }
        break
      end
      if now_us < ledger.poked_at + POKED_US then break end
      each.row.rate_need, each.row.is_changed = 0, true -- it does not come: it asks again
      ledger.poked = -1
    end
    if given then give_rate(l, ledger, given, asked_us) end
    for _, row in pairs(ledger.rows) do
      if row.rate_need > 0 then ledger.rate_waits = ledger.rate_waits + 1 end
    end
    if ledger.lease > 0 then return math.ceil(ledger.lease_until / 1000) end
    if ledger.rate_waits == 0 then return nil end
    return opens > now and opens or now + math.ceil(POKED_US / 1000)
  end

  local OF_HOME = { 'own', 'keep', 'fresh', 'waits', 'rate_waits', 'clock', 'pass', 'holder', 'lease', 'lease_until', 'starts',
    'poked', 'poked_at' }
  local function save(k, ledger)
    local has_rows = ledger.lease > 0
    for _, row in pairs(ledger.rows) do
      has_rows = has_rows or row.epoch > 0 or row.need > 0 or row.rate_need > 0 or row.excess > 0
    end
    if not has_rows then return call('DEL', loans.ledger_key(k)) end
    local flat = {}
    for _, name in ipairs(OF_HOME) do
      flat[#flat + 1], flat[#flat + 2] = name, string.format('%.17g', ledger[name])
    end
    call('HSET', loans.ledger_key(k), unpack(flat))
  end

  -- Give out what is free, and ask back what is not one's own any more. `asker`: a partition that is told in any case, and
  -- when it asked, by its clock.
  function it.share_out(k, asker, asked_us)
    limited.forget(k)
    local l, next_at = limited.limit(k), nil
    local ledger = l and l.ledger or loans.ledger(k)
    local row_of_asker = asker and ledger.rows[asker]
    local can_start = l and not l.paused and not l.uncounted
    local own_need, own_users = 0, 0
    if can_start then own_need, own_users = limited.need(k) end
    if can_start and l.rate_us then next_at = share_rate(k, l, ledger, own_need, own_users, asker, asked_us) end
    if can_start and l.most then share_places(l, ledger, own_need, own_users, row_of_asker) end
    if not (l and l.rate_us) then next_at = end_rate(k, ledger) end
    if not (l and l.most) then end_places(ledger) end
    for partition, row in pairs(ledger.rows) do
      if not (l and l.rate_us) then row.rate_need = 0 end
      if not (l and l.most) then row.need = 0 end
      if row.is_changed or partition == asker then tell(k, partition, row, l, row.beside) end
      save_row(k, partition, row)
    end
    if asker and not row_of_asker then tell(k, asker, loans.new_row(), l) end
    save(k, ledger)
    if next_at then loans.put_off(k, next_at) else loans.over(k) end
    limited.forget(k)
  end

  return it
end

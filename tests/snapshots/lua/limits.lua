#!lua flags=allow-oom
-- Set limits, by hand or as code declares them, or take them back; pause all tasks of a name, or go on with them.
-- KEYS[1]  state
-- Returns  {the revision of what governs all users, 1 where something has changed; or -1: see lib/revision.lua}
-- Cost     O(limits)
local keys_of_call, values_of_call = KEYS, ARGV
local KEYS, ARGV
local calls, NEXT = {}, {}

-- lib/base.lua
-- The queue's keys and its clock. Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash
-- tag.
local call
local prefix
local state_key
local ready_key
local due_key
local leases_key
local users_key
local time
local now_us
local now
local now_text

-- A user hash nobody touched for this long is forgotten (its policy is a key of its own and stays).
local USER_TTL = 604800000

local function user_key(user) return prefix .. 'user:' .. user end
local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function uses_key(user, id) return prefix .. 'uses:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function informed_key(user, id) return prefix .. 'informed:' .. user .. ':' .. id end
local function children_key(user, id) return prefix .. 'children:' .. user .. ':' .. id end
local function ends_key(user, id) return prefix .. 'ends:' .. user .. ':' .. id end

-- What it yields: append.lua.
local function chunks_key(user, id) return prefix .. 'chunks:' .. user .. ':' .. id end

-- The attempt of a task that runs: the first one is not written down, as most tasks need no other.
local function attempt_in(field) return tonumber(field or 1) end

-- Where a user has tasks. Place: 'critical' | 'normal' (the lanes) | 'held' | 'scheduled' | 'deferred' | 'dead'.
local function place_key(place, user) return prefix .. place .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

-- What went wrong, as pcall tells it.
local function text_of(failure) return type(failure) == 'table' and failure.err or tostring(failure) end

-- Not for a key, but as the server does not let one write, or a permission is missing.
local OF_ALL = { '^OOM', '^READONLY', '^MISCONF', '^NOREPLICAS', '^NOPERM', '^NOAUTH', '^CLUSTERDOWN', 'ACL failure' }
local function is_of_all(text)
  for _, pattern in ipairs(OF_ALL) do
    if string.find(text, pattern) then return true end
  end
  return false
end

-- What is damaged of one is not the others': whether it could be done, and what came of it.
local function try_alone(act, ...)
  local is_done, told = pcall(act, ...)
  if not is_done and is_of_all(text_of(told)) then error(told, 0) end
  return is_done, told
end

-- What happened is done, also where nobody may be told of it.
local function publish(user, id, event) redis.pcall('SPUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end
calls[#calls + 1] = function()
  call = redis.call
  prefix = string.sub(KEYS[1], 1, -6)
  state_key = KEYS[1]
  ready_key = prefix .. 'ready'
  due_key = prefix .. 'due'
  leases_key = prefix .. 'leases'
  users_key = prefix .. 'users'
  time = call('TIME')
  now_us = time[1] * 1000000 + time[2]
  now = math.floor(now_us / 1000)
  now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew
  return NEXT
end
return (function()

-- lib/state.lua
-- What the queue keeps of itself: read once, and written back by save_state().
local arrival
local clearing_known
local count
local counts
local forfeited_at
local has_announcements
local has_assigned
local has_byte_limits
local has_damaged
local has_expiring
local has_in_hand
local has_limits
local has_moved
local has_policies
local has_returned
local has_weights
local hunt_known
local is_weighing
local keeper_known
local leaves_limits_alone
local next_arrival
local of_queue
local revision_known
local root
local save_bytes
local save_lines
local save_state
local save_tallies
local silent_at_known
local sweep_asked
local tell_of_moments
do

local fields_of_queue
local saved_clock, saved_arrival, saved_mean

-- Whole microseconds, strictly increasing inside a batch as well. Whole, because Redis compares the whole scores of a
-- small sorted set ten times faster than fractions.
function next_arrival()
  arrival = math.max(now_us, arrival + 1)
  return arrival
end

-- Totals of the queue. One that is no number begins anew.
function count(field, by) counts[field] = (counts[field] or 0) + by end


-- A line that is of another type fails the call, but costs it no total. One that cannot be counted up is set.
function save_state()
  if save_tallies then save_tallies() end
  if save_bytes then save_bytes() end
  local is_done, failure = true, nil
  if save_lines then is_done, failure = pcall(save_lines) end
  local put = {}
  local function set(field, value) put[#put + 1], put[#put + 2] = field, value end
  for field, by in pairs(counts) do
    if by ~= 0 then set(field, (tonumber(of_queue[field]) or 0) + by) end
  end
  if root.clock ~= saved_clock then set('clock', root.clock) end -- writing a fraction takes long
  if root.mean ~= saved_mean then set('mean', root.mean) end
  if arrival ~= saved_arrival then set('arrival', arrival) end
  local told = put[1] and redis.pcall('HSET', state_key, unpack(put))
  if type(told) == 'table' then -- a permission that is missing costs no total either
    for field, by in pairs(counts) do
      if by ~= 0 then call('HINCRBY', state_key, field, by) end
    end
    error(told, 0)
  end
  if tell_of_moments then tell_of_moments() end
  if not is_done then error(failure, 0) end
end
calls[#calls + 1] = function()
  of_queue, fields_of_queue = {}, call('HGETALL', state_key) -- few: to ask for those that may be there takes longer
  for at = 1, #fields_of_queue, 2 do of_queue[fields_of_queue[at]] = fields_of_queue[at + 1] end
  arrival = tonumber(of_queue.arrival or 0)
  has_policies, has_assigned = of_queue.policies, of_queue.assigned
  clearing_known = of_queue.clearing or '' -- lib/suspects.lua
  has_announcements, has_limits, keeper_known = of_queue.announcements, of_queue.limits, of_queue.keeper or ''
  has_weights, sweep_asked, has_returned = of_queue.weighted, of_queue.sweep, of_queue.returning
  has_byte_limits, is_weighing = tonumber(of_queue.byte_limits or 0) > 0, of_queue.weighing
  has_in_hand = tonumber(of_queue.in_hand or 0) -- lib/limits.lua
  has_damaged = of_queue.damaged -- lib/damage.lua
  hunt_known, silent_at_known = of_queue.hunt, of_queue.silent_at -- lib/hunt.lua, lib/silence.lua
  has_expiring = of_queue.expiring -- lib/expiry.lua
  root = { clock = tonumber(of_queue.clock or 0), mean = tonumber(of_queue.mean or 0) } -- the first line: lib/lines.lua
  root.elsewhere = tonumber(of_queue.elsewhere) -- of a partition: the time of the queue, see lib/between.lua
  has_moved = of_queue.moved -- lib/moved.lua
  revision_known = tonumber(of_queue.revision or 0) -- lib/revision.lua
  forfeited_at = tonumber(of_queue.forfeited_at or 0) -- the revision at which places of a partition were: lib/loans.lua
  saved_clock, saved_arrival, saved_mean = root.clock, arrival, root.mean
  counts = {}
  save_bytes = nil -- a function in scripts that count bytes: lib/bytes.lua
  return NEXT
end
end

-- lib/alive.lua
-- A queue whose `state` is lost stops here and says so: whether it has policies and limits, its clock and its totals are
-- gone. One that was never used has no settings either.

calls[#calls + 1] = function()
  if not of_queue.arrival and call('EXISTS', prefix .. 'settings') == 1 then
    return redis.error_reply('LOSTSTATE the key "state" of this queue is lost, and nothing can be put in or served: run '
      .. '`fairque doctor --repair`, which begins it anew and counts')
  end
  return NEXT
end

-- lib/absent.lua
-- Users of whom nothing is to be changed or served here: they stand still, or live in another partition.

-- lib/frozen.lua
-- A user stands still while it is carried elsewhere (dump.lua, import.lua): what waits is in no line, what time would bring waits,
-- and who would change something of it is told so.
-- frozen:<u>  hash  token: whose it is; why: 'export' or 'move', which end by themselves when the key does, 'import' or 'arrive';
--                   at: how many records of an import are there; leaves_until: of an import that is carried elsewhere with its
--                   end, in ms: till then nothing of it changes; ahead: by how much its tag was ahead of the clock. Of one that
--                   arrives: source, where it comes from; passport: lib/passport.lua; n:<total>: what it adds to totals
-- Until then the user is in `damaged` as well, with which everybody leaves it alone: lib/damage.lua.

local function frozen_key(user) return prefix .. 'frozen:' .. user end

local function is_frozen(user) return call('EXISTS', frozen_key(user)) == 1 end

local function refuse_frozen(user)
  if is_frozen(user) then error({ err = 'FROZEN ' .. user }, 0) end
end

-- lib/moved.lua
-- Users who do not live here, though somebody may look for them here, and where they live.
-- moved  hash  user → '<partition> <epoch>'
-- In the state: moved, 1 while there are some, so that a partition that nobody left pays nothing.
-- An epoch is a number that grows with each move of a user: whoever knows a later one is not sent back by an entry that is
-- older, which a partition may have to which the user is on its way.
local moved_to
local refuse_all_moved
local refuse_moved
do

local moved_key

-- Where it lives, as it is written there, or false.
function moved_to(user) return call('HGET', moved_key, user) end

function refuse_moved(user)
  local place = moved_to(user)
  if place then error({ err = 'ELSEWHERE ' .. user .. ' ' .. place }, 0) end
end

-- All of several at once, as they may be many.
function refuse_all_moved(users)
  local told = {}
  for at, place in ipairs(users[1] and call('HMGET', moved_key, unpack(users)) or {}) do
    if place then told[#told + 1] = users[at] .. ' ' .. place end
  end
  if told[1] then error({ err = 'ELSEWHERE ' .. table.concat(told, ' ') }, 0) end
end

-- From now on it does not live here. Who waits for its tasks is told. False: a later move is known.
local function mark_moved(user, partition, epoch)
  local known = tonumber(string.match(moved_to(user) or '', ' (%d+)$') or nil)
  if known and known > epoch then return false end
  local place = string.format('%d %d', partition, epoch)
  call('HSET', moved_key, user, place)
  call('HSET', state_key, 'moved', 1)
  call('ZREM', users_key, user) -- it is listed where it lives
  redis.pcall('SPUBLISH', moved_key, user .. ' ' .. place)
  return true
end

-- It lives here from now on.
local function unmark_moved(user)
  call('HDEL', moved_key, user)
  if call('EXISTS', moved_key) == 0 then call('HDEL', state_key, 'moved') end
end

-- Whether an act failed as its user does not live here.
local function is_of_moved(failure) return string.find(text_of(failure), '^ELSEWHERE ') and true or false end

-- Who is in a group lives where that does: where its root is said to live, as a user is. path: with an '@' in front, or not.
local function refuse_moved_group(path)
  local outermost = path and string.match(path, '^@?([^/]+)')
  if outermost then refuse_moved('@' .. outermost) end
end
calls[#calls + 1] = function()
  moved_key = prefix .. 'moved'
  return NEXT
end
end

local function refuse_absent(user)
  refuse_moved(user) -- first: where it arrives it stands still, and is not there yet
  refuse_frozen(user)
end

-- For what may be said of one that is exported or imported, and must not get lost on the way to another partition.
local function refuse_leaving(user)
  refuse_moved(user)
  local known = call('HMGET', frozen_key(user), 'why', 'leaves_until')
  if known[1] == 'move' or tonumber(known[2] or 0) > now then refuse_frozen(user) end
end

-- lib/limit_records.lua
-- Records of limits: what is set by hand or declared by code, and what comes of it where that changes.

-- lib/wake.lua
-- Tell at most `tasks` idle workers that `user` has work, or all that serve everyone, and not the one that calls. A worker
-- whose message nobody received is gone: the next is told.

local give_later -- a function in scripts that answer claims which rest: lib/resting.lua

local function reaches(worker) return call('SPUBLISH', prefix .. 'wake:' .. worker, '') > 0 end

local function tell_all_workers()
  for _, worker in ipairs(call('ZRANGE', prefix .. 'workers', 0, -1)) do reaches(worker) end
end

local function wake_from(set, tasks, except)
  while tasks > 0 do
    local worker = call('SPOP', set)
    if not worker then break end
    if worker ~= except and (give_later and give_later(worker) or reaches(worker)) then tasks = tasks - 1 end
  end
  return tasks
end

local function wake(user, tasks, except)
  -- Of none, where that key is of another type.
  for _, name in ipairs(has_assigned and user and redis.pcall('SMEMBERS', prefix .. 'assignments:' .. user) or {}) do
    if tasks > 0 then tasks = wake_from(prefix .. 'waiting:' .. name, tasks, except) end
  end
  if tasks > 0 then wake_from(prefix .. 'waiting', tasks, except) end
end

-- lib/loans.lua
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

-- lib/moments.lua
-- What becomes possible by time alone. One idle worker, the keeper, sleeps until the next moment, and a second one for a
-- little longer, should the keeper be gone by then; the others sleep on. `keeper` in the state is the moment it knows and
-- its name, `second` a name. See lib/keeper.lua as well.
local SECOND_MS
local moment_kept
local note_moment
local soonest
do

SECOND_MS = 50

-- A moment that is sooner than the one the keeper knows is told to one worker, when the script ends.
local soonest_user
function note_moment(at, user)
  if at < soonest then soonest, soonest_user = at, user end
end

-- What the keeper knows, and its name; nothing when it did not look at its moment.
function moment_kept()
  local at, keeper = string.match(keeper_known, '^(%d+) (.*)$')
  if at and at + SECOND_MS >= now then return tonumber(at), keeper end
end

function tell_of_moments()
  if soonest == math.huge then return end
  local at, keeper = moment_kept()
  if at and (at <= soonest or reaches(keeper)) then return end
  wake(soonest_user, 1)
end
calls[#calls + 1] = function()
  soonest, soonest_user = math.huge, nil
  return NEXT
end
end

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
local change_record
local decide
local forget_limits_if_none
local look_again
do

local uncounted_key, paused_key

-- What runs counts from the beginning. Until the claims that follow have counted it, starts wait (lib/limits.lua).
local function begin_count(key, record)
  if call('EXISTS', leases_key) == 0 then return end
  call('HSET', key, 'uncounted', 1)
  call('SADD', uncounted_key, record)
  call('HSET', state_key, 'recount', '0')
end

local function end_count(record)
  if call('SREM', uncounted_key, record) == 1 and call('EXISTS', uncounted_key) == 0 then
    call('HDEL', state_key, 'recount')
  end
end

-- What was set by hand holds, else what code declared. Returns whether anything is to be kept, and whether it limits.
function decide(key)
  local said = call('HMGET', key, 'hand', 'code')
  local by = said[1] and 'hand' or said[2] and 'code'
  call('HDEL', key, 'by', 'max', 'rate_us', 'burst')
  if not by then return call('HEXISTS', key, 'paused') == 1, false end
  local most, rate_us, burst = string.match(said[1] or said[2], '(%S+) (%S+) (%S+)')
  call('HSET', key, 'by', by)
  if most ~= '-' then call('HSET', key, 'max', most) end
  if rate_us ~= '-' then call('HSET', key, 'rate_us', rate_us, 'burst', burst) end
  return true, most ~= '-' or rate_us ~= '-'
end

-- Places are asked for, and given out, by what holds now: lib/loans.lua. While a name was paused nobody asked for any.
local function exchange_again(record)
  local waits = call('ZSCORE', prefix .. 'held', record) and string.byte(record) == 58 and new_loans().is_divided
  if waits or call('EXISTS', prefix .. 'loan:' .. record, prefix .. 'loans:' .. record) > 0 then
    call('ZADD', prefix .. 'exchanges', now, record)
  end
end

-- What is held under the key of the record; or, as a record may be that of many keys, all that is held, with the next claims.
function look_again(record)
  exchange_again(record)
  if call('EXISTS', prefix .. 'held') == 0 then return end
  if call('ZSCORE', prefix .. 'held', record) then
    call('ZADD', prefix .. 'held', now, record)
  else
    call('HSET', state_key, 'relook', '0')
  end
  if wake_from(prefix .. 'waiting', 1) > 0 then tell_all_workers() end
end

-- Has `write` change what is said in a record. Returns whether that was something else before.
function change_record(record, write)
  local key = prefix .. 'limit:' .. record
  local said = call('HMGET', key, 'hand', 'code', 'paused')
  local before = call('HMGET', key, 'by', 'max', 'rate_us', 'burst', 'paused')
  write(key)
  local now_said = call('HMGET', key, 'hand', 'code', 'paused')
  local exists, limits_now = decide(key)
  call(now_said[3] and 'SADD' or 'SREM', paused_key, record)
  if exists then
    call('ZADD', prefix .. 'limit-keys', 0, record)
  else
    call('ZREM', prefix .. 'limit-keys', record)
    call('HDEL', key, 'changed')
  end
  if limits_now and not (before[2] or before[3]) then begin_count(key, record) end
  if not limits_now then
    call('HDEL', key, 'uncounted')
    call('DEL', prefix .. 'limit-rate:' .. record) -- what is set next begins anew
    end_count(record)
  end
  count('limits', (exists and 1 or 0) - ((before[1] or before[5]) and 1 or 0))
  local after = call('HMGET', key, 'by', 'max', 'rate_us', 'burst', 'paused')
  if exists and after[2] ~= before[2] and call('HEXISTS', prefix .. 'settings', 'partition') == 1 then -- lib/loans.lua
    call('HSET', key, 'changed', string.format('%.0f', now_us))
  end
  for at = 2, 5 do
    if after[at] ~= before[at] then
      look_again(record)
      break
    end
  end
  return said[1] ~= now_said[1] or said[2] ~= now_said[2] or said[3] ~= now_said[3]
end

-- What is held, or has a place in hand, still has to come back.
function forget_limits_if_none()
  local left = call('HMGET', state_key, 'limits', 'in_hand')
  if left[1] == '0' and tonumber(left[2] or 0) == 0 and call('EXISTS', prefix .. 'held', prefix .. 'exchanges') == 0 then
    call('HDEL', state_key, 'limits')
  end
end
calls[#calls + 1] = function()
  uncounted_key, paused_key = prefix .. 'uncounted', prefix .. 'paused-tasks'
  return NEXT
end
end

-- lib/revision.lua
-- What governs all users (the policy of everybody, limits that are not of one user, pauses of tasks) is the same in each
-- partition of a queue, and has a revision: changes are numbered by the first partition, and each other one takes those it
-- lacks, in their order, before it serves. `revision` of the state. Of a call: 0, it is about a user, or the queue has no
-- partitions; -1: this is the first partition, which numbers it; else the number that the first one gave it.

local function known_revision() return tonumber(call('HGET', state_key, 'revision') or 0) end

-- Whether what the call brings is not the next change: it is known, or others come before it.
local function follows(revision) return revision > 0 and known_revision() ~= revision - 1 end

local function note_revision(revision, has_changed)
  if revision > 0 or (revision < 0 and has_changed) then call('HINCRBY', state_key, 'revision', 1) end
end
-- ARGV[1] is the msgpack of Limits: declared: bool, limits: list[LimitRecord], revision: int
--   declared: by the code of a worker; else by hand, which goes before that. revision: see lib/revision.lua.
-- LimitRecord: record: str, is_set: bool, max: int | None, interval_us: int | None, burst: int | None, paused: bool |
--   None
--   is_set: else it is taken back. max: most that run at once. interval_us: between two starts. Neither: no limit.
--   paused: of the name of a task, and nothing else of it is changed.
local args
local declared, limits, revision
local source

local function set(limit)
  local record, is_set, max, interval_us, burst, paused = limit[1], limit[2], limit[3], limit[4], limit[5], limit[6]
  return change_record(record, function(key)
    if paused ~= nil then
      if paused then call('HSET', key, 'paused', 1) else call('HDEL', key, 'paused') end
    elseif is_set then
      call('HSET', key, source, string.format('%s %s %s', max or '-', interval_us or '-', burst or '-'))
    else
      call('HDEL', key, source)
    end
  end)
end

local has_changed
calls[#calls + 1] = function()
  args = cmsgpack.unpack(ARGV[1])
  declared, limits, revision = args[1], args[2], args[3]
  source = declared and 'code' or 'hand'
  if has_damaged or has_moved then
    for _, limit in ipairs(limits) do
      local record = limit[1]
      refuse_leaving(string.match(record, '^[^:=]*')) -- nobody, where it is about all
    end
  end
  if follows(revision) then return { known_revision(), -1 } end
  has_changed = false
  for _, limit in ipairs(limits) do has_changed = set(limit) or has_changed end
  note_revision(revision, has_changed)
  save_state()
  forget_limits_if_none()
  return { known_revision(), has_changed and 1 or 0 }
end
local function run(its_keys, its_values)
  KEYS, ARGV = its_keys, its_values
  for nth = 1, #calls do
    local came = calls[nth]()
    if came ~= NEXT then return came end
  end
end
return run(keys_of_call, values_of_call)
end)()

#!lua
-- Fire schedules: each makes a task and moves on to its next slot, unless another scheduler was faster.
-- KEYS[1]  state
-- ARGV     priority step in ms, TTL of canceled records in ms, ms for which an ended schedule is kept, then per firing:
--          user, 1, task id, priority, when, body, schedule, expected ms, revision, next ms or '' (no more), next slot or
--          '', missed slots, kind, overlap, max runs or ''
--          kind: 'fire' | 'pass' (no task, only the next slot) | 'now' (a task, and the schedule stays as it is)
--          overlap: allow | skip | cancel_running
-- Returns  per firing: 'fired' | 'passed' | 'skipped' (the task before lives) | 'full' (the backlog of the user) |
--          'stale' (fired by another one, changed or removed)
-- Cost     O(firings log n + what is canceled)
--@include base
--@include fair
--@include wake
--@include place
--@include limits
--@include canceled
--@include depend
--@include cancel
--@include drop
--@include schedules
local step_us, canceled_ttl, keep_ms = tonumber(ARGV[1]) * 1000, tonumber(ARGV[2]), tonumber(ARGV[3])
local FIRST, FIELDS = 4, 13
--@include add

local function read(at)
  return { user = ARGV[at], id = ARGV[at + 2], priority = tonumber(ARGV[at + 3]), when = ARGV[at + 4],
    body = ARGV[at + 5], schedule = ARGV[at + 6], expected = tonumber(ARGV[at + 7]), revision = ARGV[at + 8],
    next = ARGV[at + 9], slot = ARGV[at + 10], missed = tonumber(ARGV[at + 11]), kind = ARGV[at + 12],
    overlap = ARGV[at + 13], max_runs = tonumber(ARGV[at + 14]) }
end

local function is_stale(f)
  if call('HGET', schedule_key(f.schedule), 'revision') ~= f.revision then return true end
  return f.kind ~= 'now' and tonumber(call('ZSCORE', schedules_key, f.schedule) or -1) ~= f.expected
end

local function lives(user, id)
  if call('EXISTS', result_key(user, id)) == 1 or call('EXISTS', body_key(user, id)) == 0 then return false end
  return call('HGET', task_key(user, id), 'state') ~= 'failed'
end

local function has_room(user)
  local excess = governed and governed.excess(user, 1) or 0
  if excess > 0 and governed.may_drop(user, 1) then
    drop_oldest(user, excess, canceled_ttl)
    excess = governed.excess(user, 1)
  end
  return excess == 0
end

-- As `enqueue` does it.
local function put(f)
  make_room()
  take_waiters_over(f.user, f.id)
  call('SET', body_key(f.user, f.id), f.body)
  local due = due_at(f.when)
  if due > now then
    call('HSET', task_key(f.user, f.id), 'state', 'scheduled', 'priority', f.priority, 'enqueued', now)
    local sooner = is_next_due(due)
    schedule(f.user, f.id, due)
    if sooner then wake(f.user, 1) end
  else
    local lane, score = score_of(f.priority, step_us)
    if place(f.user, f.id, lane, score) then wake(f.user, 1) end
  end
end

local function make_task(f)
  local before = call('HGET', schedule_key(f.schedule), 'last_task')
  if before and f.overlap == 'skip' and lives(f.user, before) then return 'skipped' end
  if standing(f.user, f.id, f.body, body_key(f.user, f.id)) ~= 'new' then return 'fired' end
  if before and f.overlap == 'cancel_running' then
    cancel_task(f.user, before, 'the next run of its schedule', canceled_ttl)
  end
  if not has_room(f.user) then return 'full' end
  put(f)
  return 'fired'
end

local function move_on(f, runs)
  local key = schedule_key(f.schedule)
  if f.next == '' or (f.max_runs and runs >= f.max_runs) then
    call('HSET', key, 'state', 'ended')
    call('HDEL', key, 'slot')
    call('ZREM', schedules_key, f.schedule)
    call('ZADD', ended_key, string.format('%d', now + keep_ms), f.schedule)
  else
    call('HSET', key, 'slot', f.slot)
    call('ZADD', schedules_key, f.next, f.schedule)
  end
end

local function fire(f)
  if is_stale(f) then return 'stale' end
  local key, outcome = schedule_key(f.schedule), 'passed'
  if f.kind ~= 'pass' then outcome = make_task(f) end
  if outcome == 'fired' then call('HSET', key, 'last_run', now_text, 'last_task', f.id) end
  if f.kind == 'now' then return outcome end
  local runs = call('HINCRBY', key, 'runs', outcome == 'fired' and 1 or 0)
  if outcome == 'skipped' or outcome == 'full' then call('HINCRBY', key, 'skipped', 1) end
  if f.missed > 0 then call('HINCRBY', key, 'misfired', f.missed) end
  move_on(f, runs)
  return outcome
end

local outcomes = {}
for at = FIRST, #ARGV, FIELDS + 2 do outcomes[#outcomes + 1] = fire(read(at)) end
pass_on_outcomes(step_us, canceled_ttl)
save_state()
return outcomes

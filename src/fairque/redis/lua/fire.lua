#!lua
-- Fire schedules: each makes a task and moves on to its next slot, unless another scheduler was faster.
-- KEYS[1]  state
-- Returns  per firing: 'fired' | 'passed' | 'skipped' (a task of it lives) | 'full' (the backlog of the user, or its bytes) |
--          'stale' (fired by another one, changed or removed), or what went wrong: it fires later
-- Cost     O(firings log n + what is canceled)
--@include base
--@include state
--@include alive
--@include fair
--@include wake
--@include place
--@include depend
--@include drop
--@include schedules
--@include add
--@include rules
--@include once
--@arguments
local before = answered(nonce)
if before then return before end
local step_us = priority_step_ms * 1000

local function read(firing)
  --@fields Firing firing
  return { user = user, id = id, priority = priority, when = when, body = body, schedule_id = schedule_id,
    rules = rules, expected_ms = expected_ms, revision = revision, next_ms = next_ms, next_slot = next_slot, missed = missed, kind = kind,
    overlap = overlap, max_runs = max_runs, ends = callbacks[1] and endings().pack(callbacks) }
end

local function is_stale(f)
  if read_schedule(f.schedule_id, 'revision')[1] ~= f.revision then return true end
  return f.kind ~= 'now' and tonumber(call('ZSCORE', schedules_of(f.user), f.schedule_id) or -1) ~= f.expected_ms
end

-- The ends of the ids of its tasks, behind its own id. Where nobody asks whether they live, they are looked at only when there
-- are twice as many as count.
local MOST_UNENDED = 50

local function unended_of(f)
  local ends = {}
  for id_end in string.gmatch(call('HGET', schedule_key(f.schedule_id), 'unended') or '', '%S+') do
    ends[#ends + 1] = id_end
  end
  return ends
end

local function last_of(list) return { unpack(list, math.max(1, #list - MOST_UNENDED + 1)) } end

-- Those that live, as {id, state}, and the ends to be kept: a failed one may be requeued, but goes first.
local function look_at(f, ends)
  local living, kept, last = {}, {}, {}
  for _, id_end in ipairs(ends) do
    local id = f.schedule_id .. id_end
    if call('EXISTS', body_key(f.user, id)) == 1 then
      local state = call('HGET', task_key(f.user, id), 'state') or 'queued'
      if state == 'failed' or call('EXISTS', result_key(f.user, id)) == 1 then
        kept[#kept + 1] = id_end
      else
        living[#living + 1], last[#last + 1] = { id, state }, id_end
      end
    end
  end
  for _, id_end in ipairs(last) do kept[#kept + 1] = id_end end
  return last_of(living), last_of(kept)
end

local function remember(f, ends)
  ends[#ends + 1] = string.sub(f.id, #f.schedule_id + 1)
  call('HSET', schedule_key(f.schedule_id), 'unended', table.concat(ends, ' '))
end

-- What came of its last slots, for those who look: ms, outcome, slots that were missed before, the end of the id of its task.
local MOST_RECENT = 20

local function note_outcome(f, outcome)
  local recent = {}
  for each in string.gmatch(call('HGET', schedule_key(f.schedule_id), 'recent') or '', '%S+') do recent[#recent + 1] = each end
  local id_end = outcome == 'fired' and string.sub(f.id, #f.schedule_id + 1) or ''
  local how = outcome == 'fired' and f.kind == 'now' and 'now' or outcome
  recent[#recent + 1] = string.format('%s,%s,%d,%s', now_text, how, f.missed, id_end)
  local first = math.max(1, #recent - MOST_RECENT + 1)
  call('HSET', schedule_key(f.schedule_id), 'recent', table.concat(recent, ' ', first))
end

-- Once those that wait among the canceled have left their places. Their bytes count still, as their records will.
local function has_room(f, canceled)
  if bytes and not bytes.has_room(f.user, #f.body + #(f.ends or '')) then return false end
  if not governed then return true end
  local free = 0
  for _, task in ipairs(canceled) do
    if task[2] ~= 'started' then free = free + 1 end
  end
  return governed.excess(f.user, 1 - free) == 0 or governed.may_drop(f.user, 1)
end

local function drop_excess(user)
  local excess = governed and governed.excess(user, 1) or 0
  if excess > 0 then drop_oldest(user, excess, dead_letter_ttl_ms) end
end

-- As `enqueue` does it.
local function put(f)
  choice.know(f.user)
  f.is_put = true
  make_room()
  take_links_over(f.user, f.id)
  call('SET', body_key(f.user, f.id), f.body)
  if bytes then bytes.change(f.user, 'body:' .. f.id, #f.body) end
  if f.ends then endings().keep(f.user, f.id, f.ends) end
  local due = due_at(f.when)
  if due > now then
    put_off(f.user, f.id, f.priority, due)
  else
    local lane, score = score_of(f.priority, step_us)
    if place(f.user, f.id, lane, score) then wake(f.user, 1) end
  end
  if f.rules then obey(f, due <= now) end
end

local function make_task(f)
  local ends, living, canceled = unended_of(f), {}, {}
  if f.overlap ~= 'allow' or #ends >= 2 * MOST_UNENDED then living, ends = look_at(f, ends) end
  if f.overlap == 'skip' and living[1] then return 'skipped' end
  if standing(f.user, f.id, f.body, body_key(f.user, f.id)) ~= 'new' then return 'fired' end
  if f.overlap == 'cancel_running' then canceled = living end
  if not has_room(f, canceled) then return 'full' end
  for _, task in ipairs(canceled) do
    cancel_task(f.user, task[1], 'the next run of its schedule', dead_letter_ttl_ms)
  end
  drop_excess(f.user)
  put(f)
  remember(f, ends)
  return 'fired'
end

local function move_on(f, runs)
  if not f.next_ms or (f.max_runs and runs >= f.max_runs) then
    end_schedule(f.user, f.schedule_id, keep_ms)
  else
    call('HSET', schedule_key(f.schedule_id), 'slot', f.next_slot)
    fire_at(f.user, f.schedule_id, f.next_ms)
  end
end

local function fire(f)
  if is_stale(f) then return 'stale' end
  local key, outcome = schedule_key(f.schedule_id), 'passed'
  if f.kind ~= 'pass' then outcome = make_task(f) end
  if outcome == 'fired' then call('HSET', key, 'last_run', now_text, 'last_task', f.id) end
  note_outcome(f, outcome)
  if f.kind == 'now' then return outcome end
  local runs = call('HINCRBY', key, 'runs', outcome == 'fired' and 1 or 0)
  if outcome == 'skipped' or outcome == 'full' then call('HINCRBY', key, 'skipped', 1) end
  if f.missed > 0 then call('HINCRBY', key, 'misfired', f.missed) end
  move_on(f, runs)
  return outcome
end

-- What fails for one schedule is that of its user: its slot is tried again by and by, and the others fire.
local function fire_alone(f)
  if is_absent(f.user) then
    if f.kind == 'now' then refuse_absent(f.user) end
    return 'stale'
  end
  local is_done, outcome = pcall(fire, f)
  if is_done then return outcome end
  if f.is_put then
    damage().take_back(f.user, f.id, {})
    call('DEL', body_key(f.user, f.id))
  end
  if f.kind == 'now' then error(outcome, 0) end
  damage().note(f.user, outcome)
  pcall(fire_at, f.user, f.schedule_id, damage().next_ms)
  return damage().told(f.user, outcome, f.id)
end

local outcomes = {}
look_for_known(firings)
for at, firing in ipairs(firings) do outcomes[at] = fire_alone(read(firing)) end
pass_on_outcomes(step_us, dead_letter_ttl_ms)
pass_room_on()
save_state()
return answer(nonce, outcomes)

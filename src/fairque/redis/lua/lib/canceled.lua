-- Outcomes that others wait for, passed on at the end of the script (lib/depend.lua).
--@include base
--@include message
--@include metrics
--@include task
--@include expiry
--@include pointers
--@include ends

-- has_ends: whether something is kept for its end (lib/ends.lua). `dependents`: of one that finished, as lib/depend.lua has
-- them.
local announcements = {}
local function announce(user, id, outcome, has_ends, dependents)
  announcements[#announcements + 1] = { user, id, outcome, has_ends and true or false, dependents }
end

-- The fields of message.Record, after the first nine bytes of the body and the letter of the state. What did not run
-- started and ended now.
local function canceled_record(body, known, reason, origin)
  local ran = known.state == 'started'
  local started = ran and tonumber(known.started) or now
  local attempt = ran and attempt_in(known.attempt) or tonumber(known.attempt or 0)
  local queued = tonumber(known.queued or known.enqueued) or not ran and known.came and math.floor(known.came / 1000) or started
  return string.sub(body, 1, 9) .. 'C' .. (origin and '\157' or '\156') .. cmsgpack.pack(name_in(body), attempt, queued,
    started, now - started, ran and known.worker or '', nil, true, nil, 'TaskCanceled', reason, '') .. (origin and cmsgpack.pack(origin) or '')
end

local function known_of(key)
  local flat, known = call('HGETALL', key), {}
  for at = 1, #flat, 2 do known[flat[at]] = flat[at + 1] end
  return known
end

-- The end of a task that did not run to its end, and has left its place already: a record that says so, kept for `ttl` ms, and
-- nothing else is left of it. `origin`: of one that a dependency ended, the task with which that began.
local function end_canceled(user, id, reason, ttl, origin)
  local known = known_of(task_key(user, id))
  if known.ends then endings().prove(user, id) end
  local body = redis.pcall('GET', body_key(user, id))
  if type(body) ~= 'string' then body = string.rep('\0', 9) end -- lost, or not a message at all
  if bytes then bytes.lift(user, id) end
  call('SET', result_key(user, id), canceled_record(body, known, reason, origin), 'PX', ttl)
  call('DEL', needs_key(user, id), keys_of_task(user, id))
  call('PEXPIRE', chunks_key(user, id), ttl)
  if known.unique then pointers.let_go(user, id, known.unique) end
  if known.expires then deadlines.forget(user, id) end
  if known.linked then announce(user, id, 'canceled', known.ends) end
  if bytes then bytes.lay(user, id) end
  tally(user, 'canceled')
  publish(user, id, 'canceled')
end

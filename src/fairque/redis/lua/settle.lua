#!lua flags=allow-oom
-- Report how deliveries ended.
-- KEYS[1]  state
-- ARGV     worker, dead letter TTL in ms, priority step in ms, then per outcome: lane, user, id, stream id, attempt,
--          kind, ttl in ms, delay in ms, result record, error record, pushed value, cost, charge, run in ms, wait in ms
--          kind: finished | failed | canceled | retry | released (not the task's fault: keeps attempt, charge and place)
--          ttl: how long the result record lives; delay: wait before the retry or the return to the lane
--          error record: of canceled, the reason; pushed value: '' or the lengths of namespace and key, the TTL
--          in ms, then namespace, key and value; cost: of the body; charge: what the task added while it ran; wait: ''
--          where it is not the first attempt
-- Returns  per outcome: 1 done (also by an earlier try of the same call), 0 refused: another worker has the task
-- Cost     O(outcomes)
--@include base
--@include fair
--@include wake
--@include place
--@include limits
--@include canceled
--@include depend
--@include xcom
local dead_ttl, step_us = tonumber(ARGV[2]), tonumber(ARGV[3]) * 1000
local KEPT_ERRORS = 20
local LONGEST_HEAD = 600 -- of a body, with a name of 512 bytes
local woken = {}

-- The last delivery of a lane takes the stream with it.
local function remove_delivery(lane, user, stream_id, ...)
  local stream = stream_key(lane, user)
  if call('XLEN', stream) == 1 then
    call('DEL', stream, ...)
    call('ZREM', leases_key, lane .. ':' .. user)
    if has_cursors then forget_cursor(lane .. ':' .. user) end
  else
    call('XACK', stream, 'workers', stream_id)
    call('XDEL', stream, stream_id)
    if ... then call('DEL', ...) end
  end
  count('started', -1)
  if governed then governed.user(user).running = nil end
end

local function keep_error(user, id, record)
  local key = errors_key(user, id)
  call('RPUSH', key, record)
  call('LTRIM', key, -KEPT_ERRORS, -1)
end

local ends = {}

-- A result that others wait for is kept at least as long as they may have to.
function ends.finished(user, id, lane, stream_id, _, ttl, _, record, _, feeds)
  remove_delivery(lane, user, stream_id, task_key(user, id), body_key(user, id), errors_key(user, id))
  if feeds then
    ttl = math.max(ttl, dead_ttl)
    announce(user, id, 'finished')
  end
  call('SET', result_key(user, id), record, 'PX', ttl)
  publish(user, id, 'finished')
end

function ends.canceled(user, id, lane, stream_id, _, _, _, _, reason)
  remove_delivery(lane, user, stream_id)
  end_canceled(user, id, reason, dead_ttl)
end

function ends.failed(user, id, lane, stream_id, _, ttl, _, record, error, feeds)
  remove_delivery(lane, user, stream_id)
  keep_error(user, id, error)
  local key = task_key(user, id)
  call('HSET', key, 'state', 'failed', 'stream_id', '', 'ended', now)
  call('PEXPIRE', key, dead_ttl)
  call('PEXPIRE', body_key(user, id), dead_ttl)
  call('PEXPIRE', errors_key(user, id), dead_ttl)
  call('SET', result_key(user, id), record, 'PX', ttl)
  local dead = prefix .. 'dead:' .. user
  call('ZREMRANGEBYSCORE', dead, '-inf', now - dead_ttl)
  call('ZADD', dead, now, id)
  call('PEXPIRE', dead, dead_ttl)
  local all_dead = prefix .. 'dead'
  call('ZREMRANGEBYSCORE', all_dead, '-inf', now - dead_ttl)
  call('ZADD', all_dead, now, user .. ':' .. id)
  call('PEXPIRE', all_dead, dead_ttl)
  if feeds then announce(user, id, 'failed') end
  publish(user, id, 'failed')
end

-- Back to its place: at once, or when its time has come.
local function put_back(user, id, lane, stream_id, attempt, delay)
  local key = task_key(user, id)
  remove_delivery(lane, user, stream_id)
  call('HSET', key, 'stream_id', '', 'last', stream_id .. ' ' .. attempt)
  if delay > 0 then
    call('HSET', key, 'state', 'scheduled')
    schedule(user, id, now + delay)
  else
    call('HSET', key, 'state', 'queued', 'queued', now)
    place(user, id, lane, call('HGET', key, 'score'))
  end
  woken[user] = (woken[user] or 0) + 1
  publish(user, id, 'waiting')
end

function ends.retry(user, id, lane, stream_id, attempt, _, delay, _, error)
  keep_error(user, id, error)
  local key = task_key(user, id)
  call('HINCRBY', key, 'failures', 1)
  call('HDEL', key, 'lost')
  put_back(user, id, lane, stream_id, attempt, delay)
end

function ends.released(user, id, lane, stream_id, attempt, _, delay)
  local key = task_key(user, id)
  call('HINCRBY', key, 'attempt', -1)
  call('HSET', key, 'paid', 1)
  if delay > 0 then
    call('HINCRBY', key, 'returned', 1)
    call('HSETNX', key, 'since', now)
  end
  put_back(user, id, lane, stream_id, attempt, delay)
end

-- The record of a task that ended as canceled tells which worker's attempt that was.
local function was_canceled(record, attempt)
  if not record or string.sub(record, 10, 10) ~= 'C' then return false end
  local fields = cmsgpack.unpack(string.sub(record, 11))
  return fields[2] == tonumber(attempt) and fields[6] == ARGV[1]
end

-- The same outcome may arrive twice when the first reply was cut.
local function already_done(user, id, stream_id, attempt, record)
  if call('HGET', task_key(user, id), 'last') == stream_id .. ' ' .. attempt then return true end
  local found = call('GET', result_key(user, id))
  if record ~= '' then return found == record end
  return was_canceled(found, attempt)
end

local function push(user, packed)
  local space, key, ttl = struct.unpack('>I4I4d', packed)
  local value_at = 17 + space + key
  new_xcom().push(user, string.sub(packed, 17, 16 + space), string.sub(packed, 17 + space, value_at - 1),
    string.sub(packed, value_at), ttl)
end

-- A task that was canceled while it ran is not tried again.
local function settled_kind(kind, canceling)
  if canceling and (kind == 'retry' or kind == 'released') then return 'canceled' end
  return kind
end

-- Shares follow what was used: what was charged at the claim is corrected. Returns what the service cost in the end.
local function correct(user, id, kind, cost, charge, run, charged)
  local total = cost + charge
  if charged then
    -- What did not run, as its worker died or nobody can run it, costs what it was thought to: nobody is served for nothing.
    total = (run > 0 and cost * run / 1000 or charged) + charge
    charge = total - charged
    if kind == 'retry' then call('HDEL', task_key(user, id), 'charged') end
  end
  if charge ~= 0 then adjust(user, charge) end
  return total
end

-- The mean of what tasks of a name took lately, as 'number mean'; '' stands for all names.
local function learn(name, seconds)
  local key = prefix .. 'run-times'
  local n, mean = string.match(call('HGET', key, name) or '0 0', '(.*) (.*)')
  n = math.min(n + 1, 32)
  call('HSET', key, name, string.format('%d %.9g', n, mean + (seconds - mean) / n))
  call('PEXPIRE', key, USER_TTL)
end

local TALLIED = { finished = 'finished', failed = 'failed', retry = 'retried' }
local reviewed = {}
local function account(user, id, kind, at, known)
  if kind == 'released' then return end
  local run = tonumber(ARGV[at + 13])
  local total = correct(user, id, kind, tonumber(ARGV[at + 11]), tonumber(ARGV[at + 12]), run, tonumber(known[6]))
  if known[6] and run > 0 then
    local name = name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
    if name ~= '' then learn(name, run / 1000) end
    learn('', run / 1000)
  end
  tally_service(user, tonumber(ARGV[at + 14]), run, total)
  if TALLIED[kind] then tally(user, TALLIED[kind]) end
  if governed and kind ~= 'canceled' then governed.note_end(governed.user(user), kind == 'finished') end
end

local answers = {}
for at = 4, #ARGV, 15 do
  local lane, user, id, stream_id, attempt = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local kind, ttl, delay = ARGV[at + 5], ARGV[at + 6], tonumber(ARGV[at + 7])
  local record, error = ARGV[at + 8], ARGV[at + 9]
  local known = call('HMGET', task_key(user, id), 'stream_id', 'attempt', 'feeds', 'canceling', 'limited', 'charged')
  if known[1] == stream_id and known[2] == attempt then
    if ARGV[at + 10] ~= '' then push(user, ARGV[at + 10]) end
    local settled = settled_kind(kind, known[4])
    account(user, id, settled, at, known)
    if known[5] then
      limited = limited or new_limits()
      limited.stop(known[5], user, id)
    end
    if governed and governed.ends_matter(governed.user(user)) and not reviewed[user] then
      reviewed[user] = true
      reviewed[#reviewed + 1] = user
    end
    local told = settled == 'canceled' and known[4] or error
    ends[settled](user, id, lane, stream_id, attempt, ttl, delay, record, told, known[3])
    answers[#answers + 1] = 1
  else
    answers[#answers + 1] = already_done(user, id, stream_id, attempt, record) and 1 or 0
  end
end

pass_on_outcomes(step_us, dead_ttl)
for _, user in ipairs(reviewed) do
  if governed.freed(user) then woken[user] = (woken[user] or 0) + 1 end
end
if limited then limited.pass_on(woken) end
for user, tasks in pairs(woken) do wake(user, tasks) end
save_state()
return answers

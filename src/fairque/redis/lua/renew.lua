#!lua flags=allow-oom
-- A worker's heartbeat, and its running deliveries kept alive; what they used is charged where that is time, and how long
-- those ran that have ended is learnt where it is not.
-- KEYS[1]  state
-- Returns  {positions (from 0) of the deliveries that are no longer its own, each with why, as lib/whereabouts.lua or
--          lib/moved.lua has it, positions of those that were canceled, 1 when its process is to look at schedules, as
--          nobody else does}
-- Cost     O(deliveries), and O(workers) when one has come, gone or changed
--@include base
--@include state
--@include fair
--@include charging
--@include sweep
--@include weighing
--@include hunt
--@include whereabouts
--@include renewal
--@include run_times
--@include moved
--@include schedule_keepers
--@arguments
-- Of workers that are dropped, and of a process that was started anew under the same id.
local function look_for_what_they_had(are_gone, is_new)
  local lease_ms = tonumber(call('HGET', prefix .. 'settings', 'lease_ms') or 0)
  if are_gone then begin_hunt(now + math.max(0, lease_ms - ttl_ms)) end
  if is_new then begin_hunt(now + lease_ms) end
end

-- With the last part of a renewal.
local function give_sign()
  local entry, flat = prefix .. 'worker:' .. worker, {}
  for field, value in pairs(fields) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
  end
  local came = call('ZADD', prefix .. 'workers', now_text, worker)
  for name in string.gmatch(fields.serves or '', '%S+') do call('ZADD', prefix .. 'assignments', 'XX', now, name) end
  local gone = call('ZREMRANGEBYSCORE', prefix .. 'workers', '-inf', now - ttl_ms)
  local known = call('HMGET', entry, 'concurrency', 'started_at')
  local had = known[1]
  local is_new = known[2] and fields.started_at and tonumber(known[2]) ~= fields.started_at
  if gone > 0 or is_new then look_for_what_they_had(gone > 0, is_new) end
  call('HSET', entry, 'seen', now, 'idle', #deliveries == 0 and 1 or 0, unpack(flat))
  call('PEXPIRE', entry, ttl_ms)
  if gone > 0 or came > 0 or tonumber(had or 0) ~= (fields.concurrency or 0) then
    local before, slots = tonumber(call('HGET', state_key, 'slots') or 0), 0
    for _, name in ipairs(call('ZRANGE', prefix .. 'workers', 0, -1)) do
      slots = slots + (call('HGET', prefix .. 'worker:' .. name, 'concurrency') or 0)
    end
    if slots ~= before then call('HSET', state_key, 'slots', slots) end
    if slots > before and call('HDEL', state_key, 'held_by_share') == 1 then
      new_sweep().begin()
      new_sweep().tell_a_worker()
    end
  end
end
if next(fields) then give_sign() end

-- Claims do it as well, but where all slots are taken there may be none.
if is_weighing then new_weighing().go_on() end

local lost, canceled, charging = {}, {}, nil

local function renew(delivery, at)
  --@fields HeldDelivery delivery
  if has_moved then refuse_moved(user) end
  local known = call('HMGET', task_key(user, id), 'stream_id', 'attempt', 'canceling', 'charged', 'started')
  if known[1] ~= stream_id or attempt_in(known[2]) ~= attempt then
    lost[#lost + 1], lost[#lost + 2] = at - 1, whereabouts(user, id, worker)
    return
  end
  renew_lease(user, id, lane, stream_id, worker)
  if known[4] then
    charging = charging or new_charging()
    charging.go_on(user, id, cost, tonumber(known[4]), known[5])
  end
  if known[3] then canceled[#canceled + 1] = at - 1 end
end

local function note(user, id, at, failure)
  if not is_of_moved(failure) then return damage().note(user, failure, id) end
  lost[#lost + 1], lost[#lost + 2] = at - 1, text_of(failure)
end

-- What fails for one delivery is that of its user.
for at, delivery in ipairs(deliveries) do
  --@fields HeldDelivery delivery: user id
  local is_done, failure = pcall(renew, delivery, at)
  if not is_done then note(user, id, at, failure) end
end

if run_times[1] then
  local known = new_run_times()
  for _, ended in ipairs(run_times) do
    --@fields EndedRuns ended
    known.learn(name, runs, seconds)
  end
end
save_state()
return { lost, canceled, next(fields) and scheduler ~= '' and has_part_for(scheduler) and 1 or 0 }

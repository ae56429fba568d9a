-- Who fell silent. `silent_at` in the state: nobody can have been silent for a lease before. `checked_at`: when that was found.
--@include base
--@include state
--@include hunt
--@include claimed
--@include set_back
--@include depend

local silent_at = tonumber(silent_at_known or 0)
local SET_BACK_MS = 1000 -- more than a clock is adjusted by in passing

local function new_silence(lease_ms, step_us)
  local it = {}
  local LOOKS = 20

  -- An idle worker gives a sign more rarely. What it said last is that it has nothing, and it knew what its last claim got.
  local function has_nothing(worker, sign)
    local known = call('HMGET', prefix .. 'worker:' .. worker, 'seen', 'idle', 'claims')
    if known[2] ~= '1' or tonumber(known[1] or 0) < sign then return false end
    return number_claimed(worker) <= tonumber(known[3] or 0)
  end

  local function note(last_sign)
    local silent = call('ZREVRANGEBYSCORE', prefix .. 'workers', last_sign, '-inf', 'WITHSCORES', 'LIMIT', 0, LOOKS)
    for at = 1, #silent, 2 do
      if not has_nothing(silent[at], tonumber(silent[at + 1])) then return begin_hunt(silent[at + 1] + lease_ms) end
    end
  end

  local function abandon_batches()
    local woken = {}
    endings().batches().abandon(step_us, woken)
    for user, tasks in pairs(woken) do wake(user, tasks) end
  end

  function it.find()
    local checked_at = tonumber(call('HGET', state_key, 'checked_at') or 0)
    if checked_at > now + SET_BACK_MS then
      if not new_set_back(lease_ms).go_on() then return end
      hunt_from = 0
    end
    depend().give_up_lapsed()
    abandon_batches()
    local last_sign = now - lease_ms
    note(last_sign)
    local oldest = call('ZRANGEBYSCORE', prefix .. 'workers', '(' .. last_sign, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    silent_at = (oldest or now) + lease_ms
    call('HSET', state_key, 'silent_at', silent_at, 'checked_at', now)
  end

  return it
end

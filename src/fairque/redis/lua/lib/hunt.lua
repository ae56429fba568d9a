-- Whoever had something and gave no sign of life for a lease may be dead. Then each lane is looked at once; while all are
-- alive, nobody looks at what they have, but now and then.
-- `hunt` in the state: when the last lease ended of those found silent so far: lanes that were looked at before are looked
-- at again. Negative when all have been. `silent_at`: nobody else can have been silent for a lease before.
--@include base
--@include state

local QUIET_LEASES = 30 -- between two looks at a lane while all workers live
local hunt_from, silent_at = tonumber(hunt_known or 0), tonumber(silent_at_known or 0)

local function begin_hunt(at)
  if at <= math.abs(hunt_from) then return end
  hunt_from = at
  call('HSET', state_key, 'hunt', at)
end

local function end_hunt()
  if hunt_from <= 0 or hunt_from > now then return end
  hunt_from = -hunt_from
  call('HSET', state_key, 'hunt', hunt_from)
end

-- An idle worker gives a sign more rarely. What it said last is that it has nothing.
local function has_nothing(worker, sign)
  local known = call('HMGET', prefix .. 'worker:' .. worker, 'seen', 'running')
  return known[2] == '0' and tonumber(known[1] or 0) >= sign
end

local function find_silent(lease_ms)
  local LOOKS = 20
  if now < silent_at and silent_at <= now + lease_ms then return end
  local last_sign = now - lease_ms
  local silent = call('ZREVRANGEBYSCORE', prefix .. 'workers', last_sign, '-inf', 'WITHSCORES', 'LIMIT', 0, LOOKS)
  for at = 1, #silent, 2 do
    if not has_nothing(silent[at], tonumber(silent[at + 1])) then
      begin_hunt(silent[at + 1] + lease_ms)
      break
    end
  end
  local oldest = call('ZRANGEBYSCORE', prefix .. 'workers', '(' .. last_sign, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  silent_at = (oldest or now) + lease_ms
  call('HSET', state_key, 'silent_at', silent_at)
end

local function is_hunting() return hunt_from > 0 and hunt_from <= now end

-- Of the looks at lanes: those to be brought forward, as commands name such a range.
local function hunted_looks(lease_ms) return '(' .. now + lease_ms, hunt_from + QUIET_LEASES * lease_ms end

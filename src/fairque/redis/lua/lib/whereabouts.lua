-- Why a worker has a delivery no longer: what is told instead of 1.
--@include base

local HAS_IT, HAS_ANEW, IS_WAITING, HAS_ENDED, IS_GONE = 0, -1, -2, -3, -4 -- `Refusal` in redis/delivery.py

local function whereabouts(user, id, worker)
  local known = call('HMGET', task_key(user, id), 'state', 'worker')
  if known[1] == 'started' then return known[2] == worker and HAS_ANEW or HAS_IT end
  if call('EXISTS', result_key(user, id)) == 1 then return HAS_ENDED end
  return call('EXISTS', body_key(user, id)) == 1 and IS_WAITING or IS_GONE
end

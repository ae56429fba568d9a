-- Records of limits: what is set by hand or declared by code, and what comes of it where that changes.
--@include base
--@include state
--@include wake
--@include loans

local uncounted_key, paused_key = prefix .. 'uncounted', prefix .. 'paused-tasks'

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
local function decide(key)
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
local function look_again(record)
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
local function change_record(record, write)
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
local function forget_limits_if_none()
  local left = call('HMGET', state_key, 'limits', 'in_hand')
  if left[1] == '0' and tonumber(left[2] or 0) == 0 and call('EXISTS', prefix .. 'held', prefix .. 'exchanges') == 0 then
    call('HDEL', state_key, 'limits')
  end
end

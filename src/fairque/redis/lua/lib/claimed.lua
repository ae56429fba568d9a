-- What a worker was handed by its last call, should it ask again as the reply was cut.
--@include base
--@include task
--@include work
--@include history

local CLAIMED_TTL = 60000
local function claimed_key(worker) return prefix .. 'claimed:' .. worker end

-- The number of the last call that handed it something.
local function number_claimed(worker)
  local packed = redis.pcall('GET', claimed_key(worker))
  return type(packed) == 'string' and cmsgpack.unpack(packed)[1] or 0
end

local function fields_of(flat)
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields
end

local function keep_claimed(claim, work)
  --@fields Claim claim: worker number
  if number == 0 or work.delivered == 0 then return end
  local kept = { number }
  for at = 1, #work.served, 8 do
    kept[#kept + 1], kept[#kept + 2] = work.served[at], work.served[at + 1]
  end
  call('SET', claimed_key(worker), cmsgpack.pack(kept), 'PX', CLAIMED_TTL)
end

-- The deliveries of the first try, as far as they are still this worker's: those beyond what it wants now go without
-- their bodies, and it puts them back. False: there was no first try, or it came to nothing.
local function claim_again(claim, work)
  --@fields Claim claim: worker max_message_bytes number
  local packed = redis.pcall('GET', claimed_key(worker))
  local kept = type(packed) == 'string' and cmsgpack.unpack(packed) or {}
  if kept[1] ~= number then return false end
  for at = 2, #kept, 2 do
    local user, id = kept[at], kept[at + 1]
    local known = fields_of(call('HGETALL', task_key(user, id)))
    local body = known.worker == worker and known.stream_id ~= '' and load_body(user, id, max_message_bytes)
    if body then
      call('XCLAIM', stream_key(known.lane, user), 'workers', worker, 0, known.stream_id, 'JUSTID')
      work.note(user, id, known.lane, known.stream_id, attempt_in(known.attempt), known.score,
        history_of(known, known.lost, known.alone), body)
    end
  end
  return true
end

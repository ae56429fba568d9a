-- What a worker was handed by its last call, should it ask again as the reply was cut: the number of that call, a space,
-- and user and id of each; without the user, what runs with the one before it.
--@include base
--@include task
--@include work
--@include history

local CLAIMED_TTL = 60000
local function claimed_key(worker) return prefix .. 'claimed:' .. worker end

-- The number of the last call that handed it something, or that was repeated.
local function number_claimed(worker)
  local kept = redis.pcall('GETRANGE', claimed_key(worker), 0, 16)
  return type(kept) == 'string' and tonumber(string.match(kept, '^%d+')) or 0
end

-- A call that the worker gave up, and that arrives after its repetition was answered: nobody would know what it was handed.
local function came_too_late(claim)
  --@fields Claim claim: worker number repeats rested
  local last = number > 0 and number_claimed(worker) or 0
  return number < last or (number == last and number > 0 and not (repeats or rested))
end

local function fields_of(flat)
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields
end

local function keep_claimed(claim, work)
  --@fields Claim claim: worker number repeats
  if number == 0 or (work.delivered == 0 and not repeats) then return end
  local kept, served, n = {}, work.served, 0
  for at = FIRST_SERVED, #served, 8 do
    kept[n + 1] = work.follows[at] and '' or served[at]
    kept[n + 2] = served[at + 1]
    n = n + 2
  end
  call('SET', claimed_key(worker), string.format('%d ', number) .. cmsgpack.pack(kept), 'PX', CLAIMED_TTL)
end

-- The deliveries of the first try, as far as they are still this worker's: those beyond what it wants now go without
-- their bodies, and it puts them back. False: there was no first try, or it came to nothing.
local function claim_again(claim, work)
  --@fields Claim claim: worker max_message_bytes number
  if number_claimed(worker) ~= number then return false end
  local kept = cmsgpack.unpack(string.match(call('GET', claimed_key(worker)), ' (.*)'))
  local user, has_first, fits
  for at = 1, #kept, 2 do
    local id = kept[at + 1]
    if kept[at] ~= '' then user, has_first = kept[at], false end
    local known = fields_of(call('HGETALL', task_key(user, id)))
    local body = known.worker == worker and known.stream_id ~= '' and load_body(user, id, max_message_bytes)
    if body then
      call('XCLAIM', stream_key(known.lane, user), 'workers', worker, 0, known.stream_id, 'JUSTID')
      work.served[1] = tonumber(known.started) or now -- all of them began with the first try
      if not has_first then fits = work.has_room() end
      work.note(user, id, known.lane, known.stream_id, attempt_in(known.attempt), known.score,
        history_of(known, known.lost, known.alone, has_first), fits and body or '', has_first)
      has_first = true
    end
  end
  return true
end

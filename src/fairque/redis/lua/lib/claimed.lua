-- What a worker was handed by its last calls, should it ask again as a reply was cut: the number of the last one, a space,
-- and for each of them, first to last, its number and what came: user and id of each; without the user, what runs with the
-- one before it. More than one is kept of calls that were under way at the same time.
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
  --@fields Claim claim: worker number repeats
  local last = number > 0 and number_claimed(worker) or 0
  return number < last or (number == last and number > 0 and not repeats)
end

local function fields_of(flat)
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields
end

-- What the calls from number `first` on were handed.
local function kept_from(worker, first)
  if number_claimed(worker) < first then return {} end
  local kept = {}
  for _, call_kept in ipairs(cmsgpack.unpack(string.match(call('GET', claimed_key(worker)), ' (.*)'))) do
    if call_kept[1] >= first then kept[#kept + 1] = call_kept end
  end
  return kept
end

local function keep_claimed(claim, work)
  --@fields Claim claim: worker number repeats since
  if number == 0 or (work.delivered == 0 and not repeats) then return end
  local kept, came = since > 0 and not repeats and kept_from(worker, since) or {}, {}
  for at = 1, #work.served, 8 do
    came[#came + 1], came[#came + 2] = work.follows[at] and '' or work.served[at], work.served[at + 1]
  end
  kept[#kept + 1] = { number, came }
  call('SET', claimed_key(worker), string.format('%d ', number) .. cmsgpack.pack(kept), 'PX', CLAIMED_TTL)
end

-- The deliveries of the first try, and of calls before it that are not answered, as far as they are still this worker's:
-- those beyond what it wants now go without their bodies, and it puts them back. False: there was no first try, or it came
-- to nothing.
local function claim_again(claim, work)
  --@fields Claim claim: worker max_message_bytes number since
  local kept = kept_from(worker, since > 0 and since or number)
  if not kept[1] then return false end
  local user, has_first, fits
  local function hand_over(of_user, id)
    if of_user ~= '' then user, has_first = of_user, false end
    local known = fields_of(call('HGETALL', task_key(user, id)))
    local body = known.worker == worker and known.stream_id ~= '' and load_body(user, id, max_message_bytes)
    if not body then return end
    call('XCLAIM', stream_key(known.lane, user), 'workers', worker, 0, known.stream_id, 'JUSTID')
    if not has_first then fits = work.has_room() end
    work.note(user, id, known.lane, known.stream_id, attempt_in(known.attempt), known.score,
      history_of(known, known.lost, known.alone, has_first), fits and body or '', has_first)
    has_first = true
  end
  for _, call_kept in ipairs(kept) do
    local came = call_kept[2]
    for at = 1, #came, 2 do hand_over(came[at], came[at + 1]) end
  end
  return true
end

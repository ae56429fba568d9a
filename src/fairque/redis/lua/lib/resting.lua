-- Answers claims that rest (lib/rest.lua), at the end of a script that puts in: whoever would be told that there is work is
-- told what that claim hands out, and need not ask. It does nothing but serve: where more may have to be done first, who
-- rests is told of work as ever.
--@include base
--@include state
--@include wake
--@include rest
--@include due_now
--@include assigned
--@include claimed
--@include depend
--@include serving
--@include work

local MOST_TOLD = 65536 -- bytes of an answer: what is longer, the worker asks for
local MOST_ANSWERED = 8 -- by one call, that others wait for; who else rests is told of work
local is_usual = not (has_limits or has_damaged or has_moved or has_announcements or sweep_asked or has_returned or is_weighing
  or root.elsewhere) and clearing_known == ''
local chosen = nil

--@once
leaves_limits_alone = true -- where there are some, nothing is answered, and who puts in need not know them

-- Whether the worker listens, and will be told by `answer_resting`.
function give_later(worker)
  if not is_usual or chosen and #chosen == MOST_ANSWERED then return false end
  is_usual = chosen or not is_anybody_due() -- whom a claim lets in stands beside those who are served then
  if not is_usual then return false end
  local claim = redis.pcall('GETDEL', resting_key(worker))
  if type(claim) ~= 'string' or call('PUBSUB', 'SHARDNUMSUB', prefix .. 'wake:' .. worker)[2] == 0 then return false end
  chosen = chosen or {}
  chosen[#chosen + 1] = { worker, claim }
  return true
end

-- As the server writes it.
local function written(reply)
  local parts = { string.format('*%d\r\n', #reply) }
  for at, value in ipairs(reply) do
    parts[at + 1] = type(value) == 'number' and string.format(':%.0f\r\n', value)
      or string.format('$%d\r\n', #value) .. value .. '\r\n'
  end
  return table.concat(parts)
end

-- Empty where it comes to nothing. What was handed out before something failed is handed over.
local function answer_to(packed)
  local claim = cmsgpack.unpack(packed)
  --@fields Claim claim: worker priority_step_ms dead_letter_ttl_ms number
  local work = new_work(claim)
  if came_too_late(claim) or not knows_assignments(claim) then return '' end
  pcall(new_serving(claim, work).serve)
  put_off_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
  if work.delivered == 0 then return '' end
  call('ZADD', prefix .. 'workers', now, worker) -- it listens: what it has is not looked for before a lease is over
  count('started', work.delivered)
  keep_claimed(claim, work)
  local answer = string.format('@%d ', number) .. written(work.reply(0))
  return #answer <= MOST_TOLD and answer or ''
end

-- An error of one is not told to who puts in: the worker meets it, and says so. Who is woken from then on asks.
local function answer_resting()
  is_usual = false
  if not chosen then return end
  for _, each in ipairs(chosen) do
    local is_done, answer = pcall(answer_to, each[2])
    call('SPUBLISH', prefix .. 'wake:' .. each[1], is_done and answer or '')
  end
end

-- What was put in is taken back.
local function wake_resting()
  is_usual = false
  for _, each in ipairs(chosen or {}) do reaches(each[1]) end
  chosen = nil
end

-- Promote what is due, steal from silent workers, then serve fairly. `claim` is a `Claim`; returns the reply of claim.lua.
--@include base
--@include state
--@include depend
--@include sweep
--@include work
--@include promotion
--@include stealing
--@include serving
--@include waiting

local function claim_tasks(claim)
  --@fields Claim claim: worker want priority_step_ms dead_letter_ttl_ms waits steals
  local LOOKS = 20
  local work = new_work(claim)
  local promotion, stealing, serving = new_promotion(claim, work), new_stealing(claim, work), new_serving(claim, work)
  call('ZADD', prefix .. 'workers', now, worker)
  if has_announcements then pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms) end
  promotion.promote_due()
  if governed then
    local asked = call('HGET', state_key, 'sweep')
    work.is_swept = asked and new_sweep().go_on(asked, work.promoted)
    governed.unpark(LOOKS, work.promoted)
  end
  if limited then limited.tick(work.promoted) end
  if steals then stealing.steal() end
  local stolen = work.delivered
  serving.serve()
  promotion.announce()
  count('started', work.delivered - stolen)
  local waiting, sleep = new_waiting(claim, work, stealing, serving), 0
  if work.delivered < want and waits then
    sleep = waiting.next_event()
    waiting.wait()
  elseif work.delivered >= want then
    waiting.stay_awake()
  end
  local reply = { now, sleep }
  for at = 1, #work.served do reply[at + 2] = work.served[at] end
  return reply
end

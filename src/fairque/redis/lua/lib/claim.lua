-- Promote what is due, steal from silent workers, then serve fairly. `claim` is a `Claim`; returns the reply of claim.lua.
-- What was handed out before something failed is handed over; the next call tells what is wrong.
--@include base
--@include state
--@include depend
--@include expired
--@include sweep
--@include work
--@include promotion
--@include stealing
--@include serving
--@include waiting
--@include weighing
--@include claimed
--@include lost_ready
--@include between
--@include assigned
--@include rest

local OUTDATED = -3 -- what governs all users was changed, and not here: see lib/revision.lua
local UNKNOWN = -2 -- instead of a time to sleep: an assignment is not known, and its list was not sent

local function claim_tasks(claim)
  --@fields Claim claim: worker want priority_step_ms dead_letter_ttl_ms waits steals repeats latest revision number rests rested
  local LOOKS = 20
  local work = new_work(claim)
  if revision > revision_known then return { now, OUTDATED } end
  if came_too_late(claim) then return work.reply(-1) end
  if not knows_assignments(claim) then return { now, UNKNOWN } end
  call('ZADD', prefix .. 'workers', now, worker)
  local between = latest and new_between(claim, work.everyone)
  if (repeats or rested) and claim_again(claim, work) then return work.reply(0, between) end
  local promotion, stealing, serving = new_promotion(claim, work), new_stealing(claim, work), new_serving(claim, work, between)
  local stolen, sleep = 0, 0

  local function look_around()
    if has_expiring then expire_due(dead_letter_ttl_ms) end
    if has_announcements or announcements[1] then pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms) end
    if has_damaged then damage().look_again(work.promoted) end
    promotion.promote_due()
    if sweep_asked or has_returned then work.is_swept = new_sweep().go_on(sweep_asked, work.promoted) end
    if governed then governed.unpark(LOOKS, work.promoted) end
    if limited then limited.tick(work.promoted) end
    if is_weighing then work.is_weighing = new_weighing().go_on() end
    if steals then stealing.steal() end
  end

  local function hand_out()
    look_around()
    stolen = work.delivered
    if between and work.everyone then between.catch_up() end
    if not stealing.serves_nothing_else() then serving.serve() end
    if between then between.save() end
    put_off_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
    promotion.announce()
    local waiting = new_waiting(claim, work, stealing, serving)
    if stealing.serves_nothing_else() then
      waiting.stay_awake()
      sleep = waiting.next_event()
    elseif between and work.has_room() and between.has_more() then
      waiting.stay_awake() -- those who are ready have their turn when others elsewhere had theirs
    elseif work.has_room() and waits then
      if work.delivered == 0 then look_for_lost_ready() end
      sleep = waiting.next_event()
      waiting.wait()
      if rests and number > 0 then
        if work.delivered == 0 and not repeats then leave_at_rest(claim) else call('DEL', resting_key(worker)) end
      end
    elseif work.delivered >= want then
      waiting.stay_awake()
    end
  end

  local is_done, failure = pcall(hand_out)
  if not is_done then put_off_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms) end
  if not is_done and work.delivered == 0 then error(failure, 0) end
  count('started', work.delivered - stolen)
  keep_claimed(claim, work)
  return work.reply(sleep, between)
end

-- What one claim has done so far, and those whom it serves.
--@include base

-- groups: the assignments served, first to last; '*' is everyone. served: the reply, eight values each delivery. promoted:
-- user → tasks that came back to its lanes. moved: steps that delivered nothing. alone: what it took is
-- to run beside nothing else.
local function new_work(claim)
  --@fields Claim claim: groups
  local it = { groups = groups, everyone = false, served = {}, delivered = 0, promoted = {}, moved = 0, is_swept = false,
    alone = false, is_weighing = false }
  for _, name in ipairs(groups) do it.everyone = it.everyone or name == '*' end

  function it.note(user, id, lane, stream_id, attempt, score, history, body)
    local n = #it.served
    it.served[n + 1], it.served[n + 2], it.served[n + 3], it.served[n + 4] = user, id, lane, stream_id
    it.served[n + 5], it.served[n + 6], it.served[n + 7], it.served[n + 8] = attempt, score, history, body
    it.delivered = it.delivered + 1
  end

  return it
end

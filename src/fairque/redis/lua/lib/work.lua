-- What one claim has done so far, and those whom it serves.
--@include base

-- groups: the assignments served, first to last; '*' is everyone. served: the reply, eight values each delivery. bytes: of
-- their bodies. promoted: user → tasks that came back to its lanes. moved: steps that delivered nothing. alone: what it took
-- is to run beside nothing else. follows: the places in the reply at which a delivery begins that runs with the one before.
local function new_work(claim)
  --@fields Claim claim: want groups
  local MOST_BYTES = 1048576 -- of bodies; the last one may be longer
  local it = { groups = groups, everyone = false, served = {}, delivered = 0, bytes = 0, promoted = {}, moved = 0,
    is_swept = false, alone = false, is_weighing = false, follows = {} }
  for _, name in ipairs(groups) do it.everyone = it.everyone or name == '*' end

  function it.has_room_for_bytes() return it.bytes < MOST_BYTES end

  function it.has_room() return it.delivered < want and it.bytes < MOST_BYTES end

  -- One too many goes without its body, which a repeated call and a steal may have: the worker puts it back.
  -- `follows`: it comes beside what is wanted, as it runs with the one before it.
  function it.note(user, id, lane, stream_id, attempt, score, history, body, follows)
    if not follows and not it.has_room() then body = '' end
    it.bytes = it.bytes + #body
    local n = #it.served
    it.served[n + 1], it.served[n + 2], it.served[n + 3], it.served[n + 4] = user, id, lane, stream_id
    it.served[n + 5], it.served[n + 6], it.served[n + 7], it.served[n + 8] = attempt, score, history, body
    if follows then it.follows[n + 1] = true else it.delivered = it.delivered + 1 end
  end

  -- sleep: ms for which the worker may. between: of a queue with partitions, see lib/between.lua.
  function it.reply(sleep, between)
    local reply = { now, sleep }
    for at = 1, #it.served do reply[at + 2] = it.served[at] end
    if between then reply[#reply + 1] = between.sight() end
    return reply
  end

  return it
end

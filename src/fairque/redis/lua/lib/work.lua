-- What one claim has done so far, and those whom it serves.
--@include base

local FIRST_SERVED = 3 -- place of the first delivery in the reply; each has eight values
local MOST_BYTES = 1048576 -- of bodies; the last one may be longer

-- groups: the assignments served, first to last; '*' is everyone. served: the reply. bytes: of the bodies in it.
-- promoted: user → tasks that came back to its lanes. moved: steps that delivered nothing. alone: what it took is to run
-- beside nothing else. follows: the places in the reply at which a delivery begins that runs with the one before.
local function new_work(claim)
  --@fields Claim claim: want groups
  local served = { now, 0 }
  local it = { groups = groups, everyone = false, served = served, delivered = 0, bytes = 0, promoted = {}, moved = 0,
    is_swept = false, alone = false, is_weighing = false, follows = {} }
  for _, name in ipairs(groups) do it.everyone = it.everyone or name == '*' end

  function it.has_room_for_bytes() return it.bytes < MOST_BYTES end

  function it.has_room() return it.delivered < want and it.bytes < MOST_BYTES end

  -- One too many goes without its body, which a repeated call and a steal may have: the worker puts it back.
  -- `follows`: it comes beside what is wanted, as it runs with the one before it.
  function it.note(user, id, lane, stream_id, attempt, score, history, body, follows)
    local n, bytes_before, delivered = #served, it.bytes, it.delivered
    if follows then
      it.follows[n + 1] = true
    else
      if delivered >= want or bytes_before >= MOST_BYTES then body = '' end
      it.delivered = delivered + 1
    end
    it.bytes = bytes_before + #body
    served[n + 1] = user
    served[n + 2] = id
    served[n + 3] = lane
    served[n + 4] = stream_id
    served[n + 5] = attempt
    served[n + 6] = score
    served[n + 7] = history
    served[n + 8] = body
  end

  -- sleep: ms for which the worker may. between: of a queue with partitions, see lib/between.lua.
  function it.reply(sleep, between)
    served[2] = sleep
    if between then served[#served + 1] = between.sight() end
    return served
  end

  return it
end

-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996), and its doors. What they change is written
-- by save_state().
--@include base
--@include state
--@include message
--@include moments
--@include gcra
--@include metrics_format
--@include policies

-- What fails for one user: see lib/damage.lua.
local damage

-- Called with a user: functions in scripts that know limits of names (lib/limits.lua).
local on_held_back, on_reviewed = nil, nil

-- A function that is made at the top of a script costs each call as much as there are names around it, and one that names
-- others of its own block costs their number. So these are made by the first that needs them, and name each other by
-- these tables.
local lines, fronts, nodes, assignments, gates, reservations, choice, governed = {}, {}, {}, {}, {}, {}, nil, nil
local function new_choice()
  choice = {}
  --@include lines
  --@include nodes
  --@include choice
  --@include fronts
  --@include assignments

  function choice.govern()
    --@include gates
    --@include reserve
    --@include breaker
    --@include quota
    --@include govern
    governed = choice
  end

  -- Made where something failed.
  local known_damage
  function choice.damage()
    if known_damage then return known_damage end
    --@include damage
    known_damage = new_damage()
    return known_damage
  end

  if has_assigned then choice.assign() end
end

local function fair()
  if not choice then new_choice() end
  return choice
end

function damage() return fair().damage() end

-- `governed` is nil in a queue that has no policies.
local function govern()
  fair()
  if not governed then choice.govern() end
end
if has_policies then govern() end

-- The user has servable work, of which the first task costs this much. False: a policy holds it back.
local function admit(user, cost) return fair().admit(user, cost) end

-- What a service cost beyond what was charged at its start; less than nothing is given back.
local function adjust(user, by) fair().adjust(nodes.user(user), by) end

-- When the user may be served: nil is now, else ms, or math.huge where that takes an event.
local function gate_of(user) return governed and gates.at(nodes.user(user)) end

-- Whether some live worker may serve the user.
local function is_served(user) return not has_assigned or (fair() and assignments.serve(user)) end

-- A task was taken out of a lane of the user.
local function retire(user)
  if call('EXISTS', place_key('critical', user), place_key('normal', user)) == 0 then fair().retire(nodes.user(user)) end
end

-- The fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996), and its doors. What they change is written
-- by save_state().
--@include base
--@include state
--@include message
--@include moments
--@include expiry
--@include gcra
--@include metrics_format
--@include policies
--@include absence

-- What fails for one user: see lib/damage.lua.
--@once
local damage

-- Called with a user: functions in scripts that know limits of names (lib/limits.lua).
local on_held_back, on_reviewed = nil, nil

-- Their functions name each other by these tables. A queue that has no policies is `plain`.
--@once
local lines, fronts, nodes, assignments, gates, reservations, plain, governing = {}, {}, {}, {}, {}, {}, {}, {}
-- One of the two, and the second one or nil.
local choice, governed
--@do
--@include lines
--@include nodes
--@include choice
--@include fronts
--@include assignments
--@include gates
--@include reserve
--@include breaker
--@include quota
--@include govern
--@end

local function govern()
  if governed then return end
  choice, governed = setmetatable(governing, { __index = plain }), governing
  governing.begin()
end

choice = plain
if has_policies then govern() end

-- Made where something failed.
local known_damage
function damage()
  if known_damage then return known_damage end
  --@include damage
  known_damage = new_damage()
  return known_damage
end

-- The user has servable work, of which the first task costs this much. False: a policy holds it back.
local function admit(user, cost) return choice.admit(user, cost) end

-- What a service cost beyond what was charged at its start; less than nothing is given back.
local function adjust(user, by) choice.adjust(nodes.user(user), by) end

-- When the user may be served: nil is now, else ms, or math.huge where that takes an event.
local function gate_of(user)
  if governed then return gates.at(nodes.user(user)) end
  return is_absent(user) and gates.NEVER or nil
end

-- Whether some live worker may serve the user.
local function is_served(user) return not has_assigned or assignments.serve(user) end

-- A task was taken out of a lane of the user.
local function retire(user)
  if call('EXISTS', place_key('critical', user), place_key('normal', user)) == 0 then choice.retire(nodes.user(user)) end
end

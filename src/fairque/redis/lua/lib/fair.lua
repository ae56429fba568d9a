-- The doors of the fair choice (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996). What they change is written by
-- save_state().
--@include base
--@include state
--@include nodes
--@include govern

-- The user has servable work, of which the first task costs this much. False: a policy holds it back.
local function admit(user, cost)
  if governed then return governed.admit(user, cost) end
  local u = user_of(user)
  if not is_ready(u) then join(u, cost) end
  return true
end

-- Many users come that may have been away.
local function expect(names)
  if not governed and #names > 1 then learn_tags(root, names) end
end

-- What a service cost beyond what was charged at its start; less than nothing is given back.
local function adjust(user, by)
  if governed then return governed.adjust(user_of(user), by) end
  charge_late(user_of(user), by)
end

-- When the user may be served: nil is now, else ms, or math.huge where that takes an event.
local function gate_of(user) return governed and gate_at(user_of(user)) end

-- A task was taken out of a lane of the user.
local function retire(user)
  if call('EXISTS', place_key('critical', user), place_key('normal', user)) > 0 then return end
  local u = user_of(user)
  if governed then
    governed.unpark_one(user)
    forget_cap(u)
    governed.leave(u)
  else
    leave(u)
  end
end

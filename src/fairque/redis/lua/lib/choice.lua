-- What is done to users, in a queue that has no policies. See lib/govern.lua as well.

-- The user has servable work, of which the first task costs this much. True: it may be served now.
function plain.admit(user, cost)
  local u = nodes.user(user)
  if not nodes.is_ready(u) then nodes.join(u, cost) end
  return true
end

-- Reads what admitting a user needs, so that a key of another type shows before anything is written.
function plain.know(user)
  local u = nodes.user(user)
  nodes.is_ready(u)
  nodes.marks(u)
  if has_assigned then assignments.of(user) end
end

function plain.leave(u) nodes.leave(u) end

function plain.adjust(u, by) nodes.charge_late(u, by) end

-- Whoever served it out of turn does so no longer.
function plain.forgive(u) nodes.forgive(u) end

-- Nothing of it waits any more.
function plain.retire(u)
  nodes.forget_cap(u)
  choice.leave(u)
end

-- Many users come that may have been away.
function plain.expect(names)
  if not governed and #names > 1 then lines.learn(root, names) end
end

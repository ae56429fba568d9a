-- What is no matter of policies.

-- Many users come that may have been away.
function government.expect(names)
  if not nodes.everybody and #names > 1 then lines.learn(root, names) end
end

function government.anybody_is_ready() return lines.lowest(root) end

function government.retire(user)
  local u = nodes.user(user)
  if nodes.everybody then government.unpark_one(user) end
  nodes.forget_cap(u)
  government.leave(u)
end


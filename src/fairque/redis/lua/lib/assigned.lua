--@include base
--@include state
--@include fair

-- Whether the lists of all assignments of a claim are known. Those that came with the call are noted.
local function knows_assignments(claim)
  --@fields Claim claim: worker groups lists
  if not has_assigned and groups[1] == '*' then return true end
  for at, name in ipairs(groups) do
    if (name ~= '*' or has_assigned) and not assignments.note(name, lists[at], worker) then return false end
  end
  return true
end

-- A queue whose `ready` is lost says so: nobody stands in line, and somebody has tasks that nothing holds back.
--@include base
--@include state
--@include fair

local function new_search()
  local LOOKS = 5 -- at those who became ready last

  local function is_held_back(user)
    if call('ZSCORE', prefix .. 'damaged', user) then return true end
    if not governed then return false end
    return sweep_asked or call('ZSCORE', prefix .. 'swept', user) or call('ZSCORE', prefix .. 'parked', user)
      or gates.at(nodes.user(user))
  end

  local function is_forgotten(user)
    if call('ZCARD', place_key('critical', user)) + call('ZCARD', place_key('normal', user)) == 0 then return false end
    local node = nodes.user(user)
    while node.up do
      if not lines.tag(node.up, node.member) then return not is_held_back(user) end
      node = node.up
    end
    return false
  end

  -- A user with a key that cannot be read tells nothing.
  return function()
    for _, user in ipairs(call('ZREVRANGE', users_key, 0, LOOKS - 1)) do
      local is_done, found = pcall(is_forgotten, user)
      if is_done and found then
        error({ err = 'LOSTREADY the key "ready" of this queue is lost, and those who stood in it are not served: run '
          .. '`fairque doctor --repair`, which finds them' }, 0)
      end
    end
  end
end

-- For a claim that found nobody: one read where nothing waits.
local function look_for_lost_ready()
  if lines.lowest(root) then return end
  local waiting = call('HMGET', state_key, 'critical', 'normal')
  local queued = (waiting[1] or 0) + (counts.critical or 0) + (waiting[2] or 0) + (counts.normal or 0)
  if queued > 0 then new_search()() end
end

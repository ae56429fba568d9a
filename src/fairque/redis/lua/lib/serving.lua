-- Who is served, until the worker has enough.
--@include base
--@include state
--@include fair
--@include limits
--@include work
--@include delivering

local fronts = {}
local function new_serving(claim, work)
  --@fields Claim claim: want
  local it, delivering = {}, new_delivering(claim, work)
  fair()
  --@include fronts
  local MOVES = 200 -- steps of one call that deliver nothing
  local AT_ONCE, OF_A_GROUP = 64, 2 -- members of a line that are read at first

  -- Whose first task was nothing to run has paid nothing, and stays the lowest: it rests until all others had their turn.
  -- So does a group all of whose users do.
  local resting = { count = 0 }
  local function rest(member) resting[member], resting.count = true, resting.count + 1 end
  local function wake_the_resting()
    if resting.count == 0 then return false end
    resting = { count = 0 }
    return true
  end

  local function serve(user)
    local u = nodes.user(user)
    local gate = not u.served and gates.at(u)
    if gate then
      work.moved = work.moved + 1
      return government.hold_back(u, gate)
    end
    if not u.served then nodes.reweight(u) end
    u.served = true
    local known = delivering.knowledge(user)
    local cost = delivering.start_next(user, known)
    if cost then
      nodes.charge(u, cost)
      gates.note_start(u)
    else
      rest(user)
    end
    if known.critical + known.normal == 0 then return government.leave(u) end
    gate = gates.at(u)
    if gate then return government.hold_back(u, gate) end
    reservations.update(u)
  end

  -- Those who are held back, and tasks that must wait for their name, take time as well.
  function it.has_room() return work.delivered < want and work.moved < MOVES end

  -- The user whose turn it is: reservations first, else from the first line inwards the lowest.
  local function new_turns()
    local known, first = {}, nil
    local at_once = math.min(want - work.delivered, AT_ONCE)
    local before = governed and lines.lowest(reservations.line) and fronts.new(reservations.line, resting, at_once)
    return function()
      first = before and fronts.first(before)
      if first then return first end
      local line, outer = root, nil
      while true do
        known[line] = known[line] or fronts.new(line, resting, line == root and at_once or OF_A_GROUP)
        local member = fronts.first(known[line])
        if member and string.byte(member) ~= 64 then return member end -- '@' begins no user, its own is encoded
        if not member and not outer then return nil end
        if member then
          line, outer = lines.at(string.sub(member, 2)), member
        else
          if lines.lowest(line) then rest(outer) else lines.remove(line.up, outer) end
          line, outer = root, nil
        end
      end
    end
  end

  local function serve_everyone()
    local next_user = new_turns()
    while it.has_room() do
      local user = next_user()
      if not user then return end
      serve(user)
    end
  end

  -- The same among the users named, by their place in the list.
  local function lowest_of(group)
    local best, best_key
    for _, user in ipairs(group) do
      local u = nodes.user(user)
      local tag = not resting[user] and nodes.is_ready(u)
      if tag then
        local key, node = { user, tag }, u.up
        local is_reserved = governed and lines.tag(reservations.line, user)
        while node.up and not is_reserved do
          key[#key + 1], key[#key + 2] = node.member, lines.tag(node.up, node.member)
          node = node.up
        end
        key[#key + 1], key[#key + 2] = '', is_reserved and 0 or 1
        local at = 0
        while best_key and at < math.min(#key, #best_key) and key[#key - at] == best_key[#best_key - at] do at = at + 1 end
        if not best_key or key[#key - at] < best_key[#best_key - at] then best, best_key = user, key end
      end
    end
    return best
  end

  local function serve_group(group)
    while it.has_room() do
      local user = lowest_of(group)
      if not user then return end
      serve(user)
    end
  end

  local function serve_groups()
    if governed and governed.all_paused then return end
    for _, group in ipairs(work.groups) do
      if #group == 0 then serve_everyone() else serve_group(group) end
    end
  end

  function it.serve()
    repeat
      serve_groups()
      local goes_on = wake_the_resting()
      if limited and limited.pass_on(work.promoted) then
        delivering.look_anew()
        goes_on = true
      end
    until not (goes_on and it.has_room())
  end

  function it.was_cut() return work.moved >= MOVES end

  return it
end

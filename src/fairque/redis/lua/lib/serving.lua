-- Who is served, until the worker has enough.
--@include base
--@include state
--@include fair
--@include limits
--@include work
--@include delivering

local function new_serving(claim, work, between)
  --@fields Claim claim: want
  local it, delivering = {}, new_delivering(claim, work)
  local MOVES = 200 -- steps of one call that deliver nothing
  local AT_ONCE, OF_A_GROUP = 64, 2 -- members of a line that are read at first
  local last_tag -- beyond it the turn is that of other partitions

  -- Whose first task was nothing to run has paid nothing, and stays the lowest: it rests until all others had their turn.
  local function nobody() return { members = {}, count = 0 } end
  local function note(some, member) some.members[member], some.count = true, some.count + 1 end
  local resting = nobody()
  local function wake_the_resting()
    if resting.count == 0 then return false end
    resting = nobody()
    return true
  end

  -- Whom something goes wrong with is set aside, and the others are served.
  local current, current_line
  local function set_aside(failure)
    if not current then error(failure, 0) end
    local user = current
    current = nil
    delivering.undo()
    damage().note(user, failure)
    damage().leave(user, current_line)
    work.moved = work.moved + 1
  end

  local function serve(user)
    local u = nodes.user(user)
    local gate = governed and not u.served and gates.at(u)
    if gate then
      work.moved = work.moved + 1
      return choice.hold_back(u, gate)
    end
    if has_weights or (governed and not u.served) then nodes.reweight(u) end
    u.served = true
    local known = delivering.knowledge(user)
    local cost = delivering.start_next(user, known)
    if cost then
      nodes.charge(u, cost)
      if governed then gates.note_start(u) end
    elseif known.is_lost then -- its lanes were
      damage().note(user, 'its tasks that waited are gone')
      work.moved = work.moved + 1
      return choice.leave(u)
    else
      note(resting, user)
    end
    if known.critical + known.normal == 0 then return choice.leave(u) end
    if not governed then return end
    gate = gates.at(u)
    if gate then return choice.hold_back(u, gate) end
    reservations.update(u)
  end

  -- Those who are held back, and tasks that must wait for their name, take time as well.
  function it.has_room() return work.has_room() and work.moved < MOVES end

  -- In front of '*', which is back, stand users whom nobody served for a time.
  local function is_raised(member, line)
    current, current_line = member, line
    local node = string.byte(member) == 64 and lines.at(string.sub(member, 2)) or nodes.user(member)
    local is_above = node.up == line and assignments.raise(node)
    current = nil
    return is_above
  end

  -- Turns among the users of an assignment. A group all of whose users rest is idle.
  local function new_turns(name)
    local known, idle, at_once = {}, nobody(), math.min(want - work.delivered, AT_ONCE)

    local function front_of(line)
      local front = known[line]
      if not front then
        local most = line.path and OF_A_GROUP or at_once
        front = name == '*' and fronts.new(line, most, resting, idle) or fronts.of_tree(name, line, most, resting, idle)
        known[line] = front
      end
      return front
    end

    local function drop_group(line)
      note(idle, line.member)
      if name == '*' then
        if not lines.lowest(line) then lines.remove(line.up, line.member) end
      else
        fronts.close(known[line])
        if call('EXISTS', known[line].key) == 0 then assignments.remove_group(name, line) end
      end
    end

    local function descend(line)
      local member = fronts.first(front_of(line))
      while member and name == '*' and has_returned and is_raised(member, line) do
        work.moved = work.moved + 1
        member = fronts.first(known[line])
      end
      if between and member and line == root then
        while member and work.moved < MOVES and between.lift(member) do
          work.moved = work.moved + 1
          member = fronts.first(known[line])
        end
        if work.moved >= MOVES then
          between.cut()
          return nil
        end
        if member and last_tag and lines.tag(root, member) > last_tag then return nil end
      end
      if not member or string.byte(member) ~= 64 then return member, line end -- '@' begins no user, its own is encoded
      local inner = lines.at(string.sub(member, 2))
      local user, of_line = descend(inner)
      if user then return user, of_line end
      drop_group(inner)
      return descend(line)
    end

    local turns = {}

    -- Reservations first, else from the first line inwards the lowest.
    function turns.next_user()
      local first = governed and lines.lowest(reservations.line) and fronts.first(front_of(reservations.line))
      if first then return first, nodes.user(first).up end
      return descend(root)
    end

    -- What was served is known in the trees of the assignment.
    function turns.close()
      for _, front in pairs(known) do
        if front.moved then fronts.close(front) end
      end
      if has_assigned then assignments.forget_lows() end
    end

    return turns
  end

  local function serve_group(name)
    local turns = new_turns(name)
    local function take_turns()
      while work.moved < MOVES and work.has_room() do
        current, current_line = turns.next_user()
        if not current then return end
        serve(current)
        current = nil
      end
    end
    local is_done, failure = pcall(take_turns)
    while not is_done do
      set_aside(failure)
      is_done, failure = pcall(take_turns)
    end
    turns.close()
  end

  local function serve_groups()
    last_tag = between and between.last_tag()
    if governed and governed.all_paused then return end
    for _, name in ipairs(work.groups) do
      if it.has_room() then serve_group(name) end
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

-- Look for what silent workers have, and when to look again.
--@include base
--@include state
--@include fair
--@include work
--@include suspects
--@include hunt
--@include silence
--@include taking_over

local function new_stealing(claim, work)
  --@fields Claim claim: worker want lease_ms priority_step_ms holds suspects
  local it = {}
  local LOOKS = 20 -- lanes of one call
  local room = clearing_known ~= '' and new_room(worker, holds)
  local waits = nil -- a lane in which one waits for room
  local has_seen_all = false -- at which it was time to look

  local function add_lanes(due, most, from, to)
    if work.everyone then
      for _, member in ipairs(call('ZRANGEBYSCORE', leases_key, from, to, 'LIMIT', 0, most - #due)) do due[#due + 1] = member end
      return
    end
    for _, name in ipairs(work.groups) do
      for _, member in ipairs(assignments.lanes(name, from, to, most - #due)) do due[#due + 1] = member end
    end
  end

  local function is_hunting() return hunt_from > 0 and hunt_from <= now end

  local function lanes_to_look_at()
    local due = {}
    if is_hunting() then
      add_lanes(due, LOOKS / 2, '(' .. now + lease_ms, hunt_from + QUIET_LEASES * lease_ms)
      add_lanes(due, LOOKS / 2, '(' .. now + QUIET_LEASES * lease_ms, '+inf') -- by a lease that was longer
    end
    has_seen_all = #due < LOOKS / 2
    add_lanes(due, LOOKS, '-inf', now) -- those from which something was taken are behind those that nobody has looked at
    return due
  end

  -- Of a worker's last free slot every other one, while others wait for their turn.
  local function is_turn_of_others()
    return want == 1 and of_queue.stole and call('HDEL', state_key, 'stole') == 1 and lines.lowest(root)
  end

  local function look_at(lanes)
    room = room or new_room(worker, holds)
    local taking_over = new_taking_over(claim, work, room)
    for _, member in ipairs(lanes) do
      if work.delivered > 0 then break end
      taking_over.look_at(member)
    end
    waits = taking_over.waits()
  end

  -- Of those that came less than a lease ago a process has one, and all processes together have a tenth of their slots.
  function it.steal()
    if now >= silent_at or silent_at > now + lease_ms then new_silence(lease_ms, priority_step_ms * 1000).find() end
    if suspects > 0 or not may_run_suspects() or is_turn_of_others() then return end
    local awaited = room and room.lane()
    local due = awaited and { awaited } or lanes_to_look_at()
    if due[1] then look_at(due) end
    has_seen_all = has_seen_all and work.delivered == 0
    if has_seen_all and work.everyone and is_hunting() then end_hunt() end
    if want == 1 and work.delivered == 1 then call('HSET', state_key, 'stole', 1) end
    if room then room.ask(work.delivered == 0 and waits) end
  end

  -- Nothing else is served by this call: what it took runs alone, or is to have room to.
  function it.serves_nothing_else() return work.alone or room and room.is_awaited() end

  -- When this worker has to look again.
  function it.next_look()
    if suspects > 0 then return now + lease_ms end
    local opens = suspects_open_at()
    if opens > now then return opens end
    if room and room.is_awaited() then return room.ends_at() end
    local first = math.huge
    if work.everyone then
      first = tonumber(call('ZRANGE', leases_key, 0, 0, 'WITHSCORES')[2] or first)
    else
      for _, name in ipairs(work.groups) do first = math.min(first, assignments.next_look(name)) end
    end
    if first == math.huge then return first end
    if is_hunting() and not has_seen_all then return now end
    if first > now and not waits then first = math.ceil(first / lease_ms) * lease_ms end -- many lanes, one look
    return math.min(first, silent_at)
  end

  return it
end

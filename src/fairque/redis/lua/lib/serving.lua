-- Who is served, until the worker has enough.
--@include base
--@include state
--@include fair
--@include limits
--@include work
--@include delivering

local function new_serving(claim, work)
  --@fields Claim claim: want
  local it, delivering = {}, new_delivering(claim, work)
  local MOVES = 200 -- steps of one call that deliver nothing

  -- Whose first task was nothing to run has paid nothing, and stays the lowest: it rests until all others had their turn.
  local resting = { users = {}, count = 0 }
  local function rest(user) resting.users[user], resting.count = true, resting.count + 1 end
  local function wake_the_resting()
    if resting.count == 0 then return false end
    resting.users, resting.count = {}, 0
    return true
  end

  local ready_users = 0
  local function serve(user, tag)
    local known = delivering.knowledge(user)
    local cost = delivering.start_next(user, known)
    if cost then
      clock = math.max(clock + cost / ready_users, tag)
      mean = mean_after(mean, cost)
      tag = tag + cost
    else
      rest(user)
    end
    if known.critical + known.normal > 0 then
      call('ZADD', ready_key, tag, user)
      return tag
    end
    leave(user, tag, ready_users > 1)
    ready_users = ready_users - 1
    return nil
  end

  local function serve_governed(user, tag, group_tag)
    local u = governed.user(user)
    local gate = not u.served and governed.gate(u)
    if gate then
      work.moved = work.moved + 1
      return governed.hold_back(u, gate)
    end
    u.served = true
    local known = delivering.knowledge(user)
    local cost = delivering.start_next(user, known)
    if cost then
      governed.note_start(u)
      governed.charge(u, cost, tag, group_tag)
    else
      rest(user)
    end
    if known.critical + known.normal == 0 then return governed.leave(u) end
    gate = governed.gate(u)
    if gate then governed.hold_back(u, gate) end
  end

  -- Those who are held back, and tasks that must wait for their name, take time as well.
  function it.has_room() return work.delivered < want and work.moved < MOVES end

  local function serve_everyone()
    while it.has_room() do
      local user, tag = lowest_in(ready_key, resting)
      if not user then return end
      serve(user, tag)
    end
  end

  local function serve_group(group)
    local tags = {}
    for at, tag in ipairs(call('ZMSCORE', ready_key, unpack(group))) do tags[at] = tag and tonumber(tag) end
    while it.has_room() do
      local best
      for at = 1, #group do
        local tag = not resting.users[group[at]] and tags[at]
        if tag and (not best or tag < tags[best] or (tag == tags[best] and group[at] < group[best])) then best = at end
      end
      if not best then return end
      tags[best] = serve(group[best], tags[best])
    end
  end

  local function serve_by_policy(group)
    while it.has_room() do
      local user, tag, group_tag
      if #group == 0 then user, tag, group_tag = governed.lowest(resting) else user = governed.lowest_of(group, resting) end
      if not user then return end
      serve_governed(user, tag, group_tag)
    end
  end

  local function serve_groups()
    if governed and governed.all_paused then return end
    for _, group in ipairs(work.groups) do
      if governed then
        serve_by_policy(group)
      elseif #group == 0 then
        serve_everyone()
      else
        serve_group(group)
      end
    end
  end

  function it.serve()
    repeat
      ready_users = call('ZCARD', ready_key)
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

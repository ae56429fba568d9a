-- The clock of the server was set back: what was noted lies in a future that is far away by now. What silent workers
-- have is looked for as if all had given a sign just now; what is scheduled for a moment waits for it.
-- `set_back` in the state: how far the lanes have been gone through; 'lists' when all have been.
--@include base
--@include state
--@include fair

local function new_set_back(lease_ms)
  local it = {}
  local LANES, KEPT_BACK = 100, 1000 -- of one call

  -- Each delivery is its worker's, whose lease begins anew. All of a lane at once: no more than there are slots.
  local function renew_lane(stream)
    local from = '-'
    repeat
      local page = call('XPENDING', stream, 'workers', from, '+', 500)
      for _, entry in ipairs(page) do
        call('XCLAIM', stream, 'workers', entry[2], 0, entry[1], 'JUSTID')
        from = '(' .. entry[1]
      end
    until #page < 500
  end

  local function go_through_lanes(cursor)
    local page = call('ZSCAN', leases_key, cursor, 'COUNT', LANES)
    for at = 1, #page[2], 2 do
      local lane, user = string.match(page[2][at], '^(%a+):(.*)$')
      local is_done, failure = pcall(renew_lane, stream_key(lane, user))
      if not is_done then damage().note(user, failure) end
      call('ZADD', leases_key, now + lease_ms, page[2][at])
      if has_assigned then assignments.note_lease(page[2][at], user, now + lease_ms) end
    end
    call('HSET', state_key, 'set_back', page[1] == '0' and 'lists' or page[1])
    return page[1] == '0'
  end

  -- False: there are more.
  local function bring_back(key)
    local far = call('ZRANGEBYSCORE', key, '(' .. now, '(+inf', 'LIMIT', 0, KEPT_BACK)
    for _, member in ipairs(far) do call('ZADD', key, now, member) end
    return #far < KEPT_BACK
  end

  local function bring_lists_back()
    for _, name in ipairs({ 'workers', 'assignments', 'damaged', 'held' }) do
      if not bring_back(prefix .. name) then return false end
    end
    return true
  end

  -- True: all of it is done.
  function it.go_on()
    local cursor = call('HGET', state_key, 'set_back') or '0'
    if cursor ~= 'lists' and not go_through_lanes(cursor) then return false end
    if not bring_lists_back() then return false end
    call('DEL', prefix .. 'suspects')
    call('HDEL', state_key, 'set_back', 'clearing', 'hunt', 'keeper', 'second')
    return true
  end

  return it
end

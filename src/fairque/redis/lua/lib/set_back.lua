-- The clock of the server was set back: what was noted lies in a future that is far away by now. What silent workers
-- have is looked for as if all had given a sign just now; what is scheduled for a moment waits for it.
-- `set_back` in the state: how far the lanes have been gone through.
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

  -- False: there are more.
  local function go_through_lanes()
    local page = call('ZSCAN', leases_key, call('HGET', state_key, 'set_back') or '0', 'COUNT', LANES)
    for at = 1, #page[2], 2 do
      local lane, user = string.match(page[2][at], '^(%a+):(.*)$')
      local is_done, failure = pcall(renew_lane, stream_key(lane, user))
      if not is_done then damage().note(user, failure) end
      call('ZADD', leases_key, now + lease_ms, page[2][at])
      if has_assigned then assignments.note_lease(page[2][at], user, now + lease_ms) end
    end
    call('HSET', state_key, 'set_back', page[1])
    return page[1] == '0'
  end

  local function bring_back(key)
    for _, member in ipairs(call('ZRANGEBYSCORE', key, '(' .. now, '(+inf', 'LIMIT', 0, KEPT_BACK)) do
      call('ZADD', key, now, member)
    end
  end

  -- True: all of it is done.
  function it.go_on()
    if not go_through_lanes() then return false end
    for _, name in ipairs({ 'workers', 'assignments', 'damaged', 'held' }) do bring_back(prefix .. name) end
    call('DEL', prefix .. 'suspects')
    call('HDEL', state_key, 'set_back', 'clearing', 'hunt', 'keeper', 'second')
    return true
  end

  return it
end

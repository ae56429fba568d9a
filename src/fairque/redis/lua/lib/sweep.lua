-- The policy of everybody changed. Who is ready is looked at when its turn comes; those who are held back with tasks, some
-- at each claim.
-- swept  zset  those of `parked` that are looked at anew
--@include base
--@include state
--@include govern
--@include wake
--@include policies

local function new_sweep()
  local it = {}
  local parked_key, swept_key = prefix .. 'parked', prefix .. 'swept'
  local SWEPT = 100 -- users per claim

  local function begin()
    if call('EXISTS', swept_key) == 1 then return call('HSET', state_key, 'sweep', 'again') end
    call('HSET', state_key, 'sweep', 1)
    if call('EXISTS', parked_key) == 1 then call('RENAME', parked_key, swept_key) end
  end

  local function park_pause(ends_at)
    call('ZADD', parked_key, ends_at, '*')
    note_moment(ends_at)
  end

  function it.change_default(was_paused)
    begin()
    call('ZREM', parked_key, '*')
    if governed.all_paused and governed.all_paused ~= true then park_pause(governed.all_paused) end
    if was_paused and not governed.all_paused then tell_all_workers() end
  end

  local function look_at_some(woken)
    local found = call('ZPOPMIN', swept_key, SWEPT)
    for at = 1, #found, 2 do
      local user = found[at]
      if user == '*' then
        if governed.all_paused == tonumber(found[at + 1]) then park_pause(governed.all_paused) end
      elseif governed.review(user) then
        woken[user] = 1
      end
    end
    return call('EXISTS', swept_key) == 1
  end

  -- True: there are more.
  function it.go_on(asked, woken)
    if look_at_some(woken) then return true end
    if asked == 'again' then
      begin()
      return true
    end
    call('HDEL', state_key, 'sweep')
    forget_policies_if_none()
    return false
  end

  return it
end

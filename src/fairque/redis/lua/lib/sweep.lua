-- The policy of everybody changed, slots were added, or workers that serve everybody came back. Who is ready is looked at
-- when its turn comes; those who are held back with tasks, and those in line, some at each claim.
-- swept        zset  those of `parked` that are looked at anew
-- sweep-lines  list  '<cursor> <path>' of the lines whose members are still to be looked at
--@include base
--@include state
--@include fair
--@include wake
--@include policies

local function new_sweep()
  local it = {}
  local parked_key, swept_key, sweep_key = prefix .. 'parked', prefix .. 'swept', prefix .. 'sweep-lines'
  local SWEPT = 100 -- users per claim

  function it.begin()
    if call('EXISTS', swept_key) == 1 then return call('HSET', state_key, 'sweep', 'again') end
    call('HSET', state_key, 'sweep', 1)
    if call('EXISTS', parked_key) == 1 then call('RENAME', parked_key, swept_key) end
  end

  local function park_pause(ends_at)
    call('ZADD', parked_key, ends_at, '*')
    note_moment(ends_at)
  end

  function it.change_default(was_paused, is_reweighted)
    it.begin()
    if is_reweighted and lines.lowest(root) then
      call('DEL', sweep_key)
      call('RPUSH', sweep_key, '0 ')
    end
    call('ZREM', parked_key, '*')
    if governed.all_paused and governed.all_paused ~= true then park_pause(governed.all_paused) end
    if was_paused and not governed.all_paused then tell_all_workers() end
  end

  function it.tell_a_worker()
    if wake_from(prefix .. 'waiting', 1) > 0 then tell_all_workers() end -- none that serves everyone is idle
  end

  local function look_at_some(woken)
    local found = call('ZPOPMIN', swept_key, SWEPT)
    for at = 1, #found, 2 do
      local user = found[at]
      if user == '*' then
        if governed.all_paused == tonumber(found[at + 1]) then park_pause(governed.all_paused) end
      elseif governed.review_alone(user) then
        woken[user] = 1
      end
    end
    return call('EXISTS', swept_key) == 1
  end

  local function look_at_member(member)
    local is_group = string.byte(member) == 64
    local node = is_group and lines.at(string.sub(member, 2)) or nodes.user(member)
    if is_group then call('RPUSH', sweep_key, '0 ' .. node.path) end
    if has_returned then assignments.raise(node) end
    if is_group or not governed then return end
    nodes.reweight(node)
    reservations.update(node)
  end

  local function go_through_lines()
    local left = SWEPT
    while left > 0 do
      local cursor, path = string.match(call('LPOP', sweep_key) or '', '^(%d+) (.*)$')
      if not cursor then return false end
      local line = path == '' and root or lines.at(path)
      lines.flush(line)
      local page = call('ZSCAN', line.key, cursor, 'COUNT', left)
      if page[1] ~= '0' then call('LPUSH', sweep_key, page[1] .. ' ' .. path) end
      for at = 1, #page[2], 2 do
        local is_done, failure = pcall(look_at_member, page[2][at])
        if not is_done then damage().note(page[2][at], failure) end
      end
      left = left - #page[2] / 2 - 1
    end
    return call('EXISTS', sweep_key) == 1
  end

  -- True: there are more.
  function it.go_on(asked, woken)
    local has_more, is_cut = governed and look_at_some(woken), go_through_lines()
    if has_more or is_cut then return true end
    if has_returned then call('HDEL', state_key, 'returning') end
    has_returned = nil
    if asked == 'again' then
      it.begin()
      return true
    end
    call('HDEL', state_key, 'sweep')
    forget_policies_if_none()
    return false
  end

  return it
end

-- Schedules: each is in the lists that its state says, and each list leads to one.
--@include base
--@include schedules
--@include doctor

local function add_schedule_checks(doctor, dead_letter_ttl_ms)
  local checks, wrong = doctor.checks, doctor.wrong

  local function list(id, key, name, at, detail)
    wrong('unlisted-schedule', name, detail, function()
      call('ZADD', key, at, id)
      return 'listed'
    end)
  end

  local function unlist(id, key, name, detail)
    wrong('wrong-list', name, detail, function()
      call('ZREM', key, id)
      return 'removed'
    end)
  end

  local function check_firing(user, id, state, slot)
    local next_at, name = call('ZSCORE', schedules_of(user), id), 'schedules:' .. user
    if state == 'active' and not next_at then
      wrong('unlisted-schedule', name, 'would never fire', function()
        fire_at(user, id, slot or now)
        return 'listed'
      end)
    elseif state ~= 'active' and next_at then
      wrong('wrong-list', name, 'fires, and is ' .. state, function()
        fire_no_more(user, id)
        return 'removed'
      end)
    end
  end

  local function check_ended(id, state)
    local ended_at = call('ZSCORE', ended_key, id)
    if state == 'ended' and not ended_at then
      list(id, ended_key, 'schedules-ended', string.format('%d', now + dead_letter_ttl_ms), 'would never be forgotten')
    end
    if state ~= 'ended' and ended_at then unlist(id, ended_key, 'schedules-ended', 'is to be forgotten, and ' .. state) end
  end

  -- What it does is lost with it. One that code declares comes back with the next declaration.
  local function forget(user, id, name, detail)
    wrong('lost-schedule', name, detail, function()
      if user ~= '' then fire_no_more(user, id) end
      for _, key in ipairs({ ended_key, broken_key, declared_key }) do call('ZREM', key, id) end
      return 'removed from the lists: add it anew'
    end)
  end

  -- `user`: in whose list it is, or ''.
  function checks.schedule(user, _, id)
    local known = read_schedule(id, 'user', 'state', 'slot', 'revision', 'spec', 'body', 'anchor', 'priority')
    if not known[1] and not known[2] then
      for _, name in ipairs({ 'schedules:' .. user, 'schedules-ended', 'schedules-broken', 'declared' }) do
        if call('ZSCORE', prefix .. name, id) then
          return forget(user, id, 'schedule:' .. id, 'is in ' .. name .. ', and gone')
        end
      end
      return
    end
    if not (known[1] and known[2] and known[4] and known[5] and known[6] and tonumber(known[7]) and tonumber(known[8])) then
      return wrong('corrupt', 'schedule:' .. id, 'lacks what it is made of', function()
        forget_schedule(id)
        return 'removed: add it anew'
      end)
    end
    if user ~= '' and known[1] ~= user and call('ZSCORE', schedules_of(user), id) then
      wrong('wrong-list', 'schedules:' .. user, id .. ' has another owner', function()
        fire_no_more(user, id)
        return 'removed'
      end)
    end
    check_firing(known[1], id, known[2], known[3])
    check_ended(id, known[2])
    if call('ZSCORE', broken_key, id) then unlist(id, broken_key, 'schedules-broken', 'was set aside, and can be read') end
    if call('ZSCORE', index_key, known[1] .. ':' .. id) then return end
    wrong('unlisted-schedule', 'schedule-index', 'is in no listing', function()
      call('ZADD', index_key, 0, known[1] .. ':' .. id)
      return 'listed'
    end)
  end

  -- A member of the index.
  function checks.indexed(user, _, id)
    local owner, member = read_schedule(id, 'user')[1], user .. ':' .. id
    if owner == user or not call('ZSCORE', index_key, member) then return end
    wrong('lost-schedule', 'schedule-index', member .. (owner and ' has another owner' or ' is gone'), function()
      call('ZREM', index_key, member)
      return owner and 'removed' or 'removed from the lists: add it anew'
    end)
  end
end

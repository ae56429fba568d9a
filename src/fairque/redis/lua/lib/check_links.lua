-- What waits for what: `needs` and `feeds` mirror each other, and who waits for a task that has ended is told.
--@include base
--@include state
--@include depend
--@include doctor

local function add_link_checks(doctor)
  local checks, wrong = doctor.checks, doctor.wrong
  local turns_key = prefix .. 'announcements'
  local LETTERS = { F = 'finished', X = 'failed', C = 'canceled' }
  local function line_of(user) return turns_key .. ':' .. user end

  local function outcome_of(user, id)
    local letter = call('GETRANGE', result_key(user, id), 9, 9)
    if LETTERS[letter] then return LETTERS[letter] end
    return call('HGET', task_key(user, id), 'state') == 'failed' and 'failed' or nil
  end

  local function tell_anew(user, dependency, outcome)
    call('RPUSH', line_of(user), cmsgpack.pack({ dependency, outcome }))
    call('ZADD', turns_key, 'NX', now_us, user)
    count('announcements', 1)
    return 'told by the claims that follow'
  end

  -- Of a pair that mirrors each other.
  local function check_told(user, id, dependency, on_failure)
    if call('EXISTS', line_of(user)) == 1 then return end
    local outcome = outcome_of(user, dependency)
    if not outcome or (outcome ~= 'finished' and on_failure == 'wait') then return end
    wrong('untold-end', 'feeds:' .. user .. ':' .. dependency, 'it has ' .. outcome .. ', and ' .. id .. ' waits', function()
      return tell_anew(user, dependency, outcome)
    end)
  end

  local function drop_feed(user, id, dependency)
    wrong('fed-for-nothing', 'feeds:' .. user .. ':' .. dependency, id .. ' does not wait for it', function()
      call('SREM', feeds_key(user, dependency), id)
      call('SREM', informed_key(user, dependency), id)
      return 'removed'
    end)
  end

  -- `id` waits for `dependency`, as one of the two says.
  function checks.link(user, id, dependency)
    local needs = call('SISMEMBER', needs_key(user, id), dependency) == 1
    local feeds = call('SISMEMBER', feeds_key(user, dependency), id) + call('SISMEMBER', informed_key(user, dependency), id) > 0
    if not needs and not feeds then return end
    local known = call('HMGET', task_key(user, id), 'state', 'on_failure')
    local waits = known[1] == 'deferred' or call('SISMEMBER', place_key('deferred', user), id) == 1
    if needs and not waits then return end -- told as a leftover
    if not waits then return drop_feed(user, id, dependency) end
    if needs and feeds then return check_told(user, id, dependency, known[2] or 'wait') end
    local name = needs and 'feeds:' .. user .. ':' .. dependency or 'needs:' .. user .. ':' .. id
    wrong('half-a-link', name, id .. ' waits for ' .. dependency .. ', as one of the two says', function()
      depend().wait_for(user, id, dependency)
      return 'in both'
    end)
  end

  -- `needs` of a task that waits for nothing.
  function checks.needs(user, id)
    if call('EXISTS', needs_key(user, id)) == 0 then return end
    if call('HGET', task_key(user, id), 'state') == 'deferred' then return end
    if call('SISMEMBER', place_key('deferred', user), id) == 1 then return end
    wrong('leftover', 'needs:' .. user .. ':' .. id, 'the task waits for nothing', function()
      call('DEL', needs_key(user, id))
      return 'deleted'
    end)
  end

  -- The marks of a task that others wait for.
  function checks.fed(user, id)
    if call('EXISTS', line_of(user)) == 1 then return end
    local name = user .. ':' .. id
    local feeds, informed = call('EXISTS', feeds_key(user, id)) == 1, call('EXISTS', informed_key(user, id)) == 1
    if informed then
      wrong('leftover', 'informed:' .. name, 'nobody is being told', function()
        call('SUNIONSTORE', feeds_key(user, id), feeds_key(user, id), informed_key(user, id))
        call('DEL', informed_key(user, id))
        return 'joined with feeds'
      end)
    end
    if (feeds or informed) and call('HEXISTS', task_key(user, id), 'feeds') == 0 then
      wrong('unmarked', 'task:' .. name, 'others wait for it, and its end would not be told', function()
        call('HSET', task_key(user, id), 'feeds', 1)
        return 'marked'
      end)
    end
  end

  -- Ends of a user's tasks that are told later.
  function checks.announcing(user)
    local is_listed, packed = call('ZSCORE', turns_key, user), call('LINDEX', line_of(user), 0)
    if packed then
      local ok, oldest = pcall(cmsgpack.unpack, packed)
      if not ok or type(oldest) ~= 'table' or type(oldest[2]) ~= 'string' then
        return wrong('corrupt', 'announcements:' .. user, 'cannot be read', function()
          call('LPOP', line_of(user))
          count('announcements', -1)
          return 'dropped'
        end)
      end
    end
    if (is_listed and true or false) == (packed and true or false) then return end
    if packed and call('ZSCORE', prefix .. 'damaged', user) then return end -- lib/damage.lua
    wrong('unlisted-end', 'announcements', 'the user ' .. (packed and 'is missing' or 'has nothing to be told'), function()
      if packed then call('ZADD', turns_key, now_us, user) else call('ZREM', turns_key, user) end
      return packed and 'listed' or 'removed'
    end)
  end
end

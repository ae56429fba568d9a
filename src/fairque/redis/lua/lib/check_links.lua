-- What depends on what: `uses` and `feeds` mirror each other, who waits for a task that has ended is told, and its result
-- stays while somebody depends on it.
--@include base
--@include state
--@include depend
--@include doctor

local function add_link_checks(doctor, dead_letter_ttl_ms)
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
    if not outcome or depend().verdict(on_failure, outcome) == 'wait' then return end
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

  local function mend_link(user, id, dependency, is_used, waits)
    local name = is_used and 'feeds:' .. user .. ':' .. dependency or 'uses:' .. user .. ':' .. id
    wrong('half-a-link', name, id .. ' depends on ' .. dependency .. ', as one of the two says', function()
      if waits then call('SADD', needs_key(user, id), dependency) end
      depend().link(user, id, dependency)
      return 'in both'
    end)
  end

  -- `id` depends on `dependency`, as one of three says.
  function checks.link(user, id, dependency)
    local is_needed = call('SISMEMBER', needs_key(user, id), dependency) == 1
    local is_used = call('SISMEMBER', uses_key(user, id), dependency) == 1
    local is_fed = call('SISMEMBER', feeds_key(user, dependency), id) + call('SISMEMBER', informed_key(user, dependency), id) > 0
    if not is_needed and not is_used and not is_fed then return end
    if not is_needed and call('EXISTS', line_of(user)) == 1 then return end -- of what has ended, links are still to go
    if call('EXISTS', body_key(user, id)) == 0 and call('SISMEMBER', place_key('deferred', user), id) == 0 then
      if is_fed and not depend().lapses(user, id) then drop_feed(user, id, dependency) end
      return -- what it uses and needs is told as a leftover
    end
    local known = call('HMGET', task_key(user, id), 'state', 'on_failure')
    local waits = known[1] == 'deferred' or call('SISMEMBER', place_key('deferred', user), id) == 1
    if is_needed and not waits then is_needed = false end -- told as a leftover
    if not is_needed and not is_used and not is_fed then return end
    if not is_used or not is_fed then return mend_link(user, id, dependency, is_used, is_needed) end
    if is_needed then check_told(user, id, dependency, known[2] or 'wait') end
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

  -- `uses` of a task that has ended.
  function checks.uses(user, id)
    if call('EXISTS', uses_key(user, id)) == 0 or call('EXISTS', body_key(user, id), line_of(user)) > 0 then return end
    if call('SISMEMBER', place_key('deferred', user), id) == 1 then return end
    if depend().lapses(user, id) then return end
    wrong('leftover', 'uses:' .. user .. ':' .. id, 'the task has ended', function()
      depend().forget(user, id)
      return 'let go'
    end)
  end

  -- A result stays while others depend on it, and no longer.
  function checks.result(user, id)
    local ttl, letter = call('PTTL', result_key(user, id)), call('GETRANGE', result_key(user, id), 9, 9)
    if ttl == -2 or call('EXISTS', line_of(user)) == 1 then return end
    local is_fed = call('EXISTS', feeds_key(user, id), informed_key(user, id)) > 0
    local name = 'result:' .. user .. ':' .. id
    if ttl == -1 and not (is_fed and letter == 'F') then
      wrong('no-expiry', name, 'stays for ever', function()
        call('PEXPIRE', result_key(user, id), dead_letter_ttl_ms)
        return 'expires in ' .. string.format('%d', dead_letter_ttl_ms / 1000) .. ' s'
      end)
    elseif ttl >= 0 and is_fed and letter == 'F' then
      wrong('expires', name, 'vanishes in ' .. string.format('%d', ttl) .. ' ms, and others depend on it', function()
        depend().keep_result(user, id)
        return 'stays'
      end)
    end
  end

  -- What is given up as a dead letter is one.
  function checks.lapsing(user, id)
    if not depend().lapses(user, id) or call('EXISTS', body_key(user, id)) == 0 then return end
    if call('HGET', task_key(user, id), 'state') == 'failed' then return end
    wrong('leftover', 'lapsing:' .. user, id .. ' is no dead letter', function()
      take_moment(prefix .. 'lapsing', place_key('lapsing', user), user, id)
      return 'removed'
    end)
  end

  -- The marks of a task that others depend on.
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
    if (feeds or informed) and call('HEXISTS', task_key(user, id), 'linked') == 0 then
      wrong('unmarked', 'task:' .. name, 'others depend on it, and its end would not be told', function()
        call('HSET', task_key(user, id), 'linked', 1)
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

-- Batches: each task of one that has not ended is in its set, and is known to be of it; an open one is looked at when nobody
-- closes it; one that is over has said so.
--@include base
--@include state
--@include wake
--@include ends
--@include doctor

local function add_batch_checks(doctor, step_us)
  local checks, wrong = doctor.checks, doctor.wrong
  local LETTERS = { F = 'finished', X = 'failed', C = 'canceled' }
  local function batches() return endings().batches() end

  local function is_listed(user, batch) return call('ZSCORE', prefix .. 'batches:' .. user, batch) and true or false end

  local function check_lost(user, batch)
    if call('EXISTS', batches().tasks_key(user, batch)) == 0 and not is_listed(user, batch) then return end
    wrong('leftover', 'batch-tasks:' .. user .. ':' .. batch, 'the batch is gone', function()
      batches().forget(user, batch)
      return 'deleted'
    end)
  end

  function checks.batch(user, batch)
    local state = batches().state(user, batch)
    if not state then return check_lost(user, batch) end
    if (state == 'open') ~= is_listed(user, batch) then
      wrong('unlisted-end', 'batches:' .. user, batch .. ' is ' .. state, function()
        batches().list(user, batch, state)
        return state == 'open' and 'listed' or 'removed'
      end)
    end
    if batches().is_over_untold(user, batch) then
      wrong('untold-end', 'batch:' .. user .. ':' .. batch, 'all of its tasks have ended', function()
        wake(user, batches().complete_if_over(user, batch, step_us))
        return 'its callbacks are put in'
      end)
    end
  end

  -- A user of whom some are open.
  function checks.batches(user)
    local first = call('ZRANGE', prefix .. 'batches:' .. user, 0, 0, 'WITHSCORES')[2]
    local at = call('ZSCORE', prefix .. 'batches', user)
    if (first and true or false) == (at and true or false) then return end
    wrong('unlisted-end', 'batches', 'the user ' .. (first and 'is missing' or 'has no open batch'), function()
      if first then call('ZADD', prefix .. 'batches', first, user) else call('ZREM', prefix .. 'batches', user) end
      return first and 'listed' or 'removed'
    end)
  end

  -- A task in the set of a batch.
  function checks.counted(user, id, batch)
    if call('SISMEMBER', batches().tasks_key(user, batch), id) == 0 or not batches().state(user, batch) then return end
    local name = user .. ':' .. id
    if call('EXISTS', body_key(user, id)) == 0 then
      return wrong('leftover', 'batch-tasks:' .. user .. ':' .. batch, id .. ' has ended', function()
        local outcome = LETTERS[call('GETRANGE', result_key(user, id), 9, 9)] or 'canceled'
        wake(user, batches().note_end(user, batch, id, outcome, step_us))
        return 'counted'
      end)
    end
    if call('EXISTS', ends_key(user, id)) == 1 then return end
    wrong('unmarked', 'ends:' .. name, 'its batch would not hear of its end', function()
      endings().keep(user, id, endings().pack({}, batch))
      return 'marked'
    end)
  end

  -- A task that lives, by what is kept for its end.
  function checks.of_batch(user, id)
    local packed = call('GET', ends_key(user, id))
    local ok, kept = pcall(cmsgpack.unpack, packed or '')
    local batch = packed and ok and type(kept) == 'table' and kept[3] or ''
    if batch == '' or call('EXISTS', body_key(user, id)) == 0 or not batches().state(user, batch) then return end
    if call('HGET', task_key(user, id), 'state') == 'failed' then return end
    if call('SISMEMBER', batches().tasks_key(user, batch), id) == 1 then return end
    wrong('unmarked', 'batch-tasks:' .. user .. ':' .. batch, id .. ' has not ended, and would not be waited for', function()
      call('SADD', batches().tasks_key(user, batch), id)
      return 'marked'
    end)
  end
end

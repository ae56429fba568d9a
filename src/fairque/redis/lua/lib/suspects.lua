-- Tasks that were in a process when it died run again apart from each other: which of them killed it is not known.
-- suspects  zset  <u>:<id> of those that were handed out less than a lease ago → when that is over
--@include base
--@include state

local suspects_key = prefix .. 'suspects'

local are_none = false -- as far as this call has seen

local function watch_suspect(user, id, lease_ms)
  are_none = false
  call('ZADD', suspects_key, now + lease_ms, user .. ':' .. id)
end

local function may_run_suspects()
  are_none = are_none or call('EXISTS', suspects_key) == 0
  if are_none then return true end
  call('ZREMRANGEBYSCORE', suspects_key, '-inf', now)
  local slots = tonumber(call('HGET', state_key, 'slots') or 0)
  return call('ZCARD', suspects_key) < math.max(1, math.floor(slots / 10))
end

-- When one more may run at the latest; 0: now.
local function suspects_open_at()
  if may_run_suspects() then return 0 end
  return tonumber(call('ZRANGE', suspects_key, 0, 0, 'WITHSCORES')[2])
end

-- One that died as the only suspect runs in a worker that runs nothing else for a time: an idle one, or one that takes
-- nothing new until it is empty. One worker of all does so at a time, and for a tenth of the time of all at most: tasks that
-- kill must not take the workers of everybody. `clearing` in the state: since when and until when a worker is occupied by
-- that, when the next one may be, the lane for which it is to become empty ('-': it runs), and its name.
local function new_room(worker, holds)
  local it = {}
  local PATIENCE_MS = 30000 -- for running tasks to end
  local SIGN_MS = 20000 -- within which a live worker gives one
  local since, ends_at, opens_at, lane, owner = string.match(clearing_known, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
  since, ends_at, opens_at = tonumber(since or 0), tonumber(ends_at or 0), tonumber(opens_at or 0)
  local is_awaited = lane and lane ~= '-' and ends_at > now
  local is_own = owner == worker

  local function note(from, to, of_lane)
    local workers = math.max(1, call('ZCOUNT', prefix .. 'workers', now - SIGN_MS, '+inf'))
    since, ends_at, lane, is_own, is_awaited = from, to, of_lane, true, of_lane ~= '-'
    opens_at = to + math.ceil((to - from) * math.max(0, 10 / workers - 1))
    call('HSET', state_key, 'clearing', string.format('%d %d %d ', since, ends_at, opens_at) .. lane .. ' ' .. worker)
  end

  -- The lane for which this worker is empty now.
  function it.lane() return is_awaited and is_own and holds == 0 and lane end

  -- Whether one may run alone here: nobody does or did just now, or a busy worker is still waited for.
  function it.is_open() return holds == 0 and (is_awaited or opens_at <= now) end

  -- One runs alone here, for so long at most.
  function it.take(ms) note(is_awaited and is_own and since or now, now + ms, '-') end

  -- It has ended.
  function it.close()
    if is_own and lane == '-' and ends_at > now then note(since, now, '-') end
  end

  -- `wanted`: the lane, if this call saw one that waits for room.
  function it.ask(wanted)
    if is_awaited and is_own and holds == 0 then
      call('HDEL', state_key, 'clearing') -- it has gone
      is_awaited = false
    elseif wanted and holds > 0 and opens_at <= now then
      note(now, now + PATIENCE_MS, wanted)
    end
  end

  function it.is_awaited() return is_awaited and is_own and holds > 0 end

  function it.ends_at() return ends_at end

  function it.opens_at() return is_awaited and ends_at or opens_at end

  return it
end

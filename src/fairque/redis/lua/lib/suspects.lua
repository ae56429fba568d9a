-- Tasks that were in a process when it died run again apart from each other: which of them killed it is not known.
-- suspects  zset  <u>:<id> of those that were handed out less than a lease ago → when that is over
--@include base
--@include state

local suspects_key = prefix .. 'suspects'

local function watch_suspect(user, id, lease_ms) call('ZADD', suspects_key, now + lease_ms, user .. ':' .. id) end

local function may_run_suspects()
  if call('EXISTS', suspects_key) == 0 then return true end
  call('ZREMRANGEBYSCORE', suspects_key, '-inf', now)
  local slots = tonumber(call('HGET', state_key, 'slots') or 0)
  return call('ZCARD', suspects_key) < math.max(1, math.floor(slots / 10))
end

-- When one more may run at the latest; 0: now.
local function suspects_open_at()
  if may_run_suspects() then return 0 end
  return tonumber(call('ZRANGE', suspects_key, 0, 0, 'WITHSCORES')[2])
end

-- One that died as the only suspect runs in a worker that runs nothing else: an idle one, or one at a time that takes
-- nothing new until it is empty. `clearing` in the state is until when, for which lane, and its name.
local function new_room(worker, holds)
  local it = {}
  local PATIENCE_MS = 30000 -- then another worker's turn
  local ends_at, lane, owner = string.match(clearing_known, '^(%d+) (%S+) (.*)$')
  ends_at = tonumber(ends_at or 0)
  local is_own = owner == worker

  -- The lane for which this worker is empty now.
  function it.lane() return is_own and holds == 0 and lane end

  -- `wanted`: the lane, if this call saw one that waits for room.
  function it.settle(wanted)
    if is_own and (holds == 0 or ends_at <= now) then
      is_own = false
      call('HDEL', state_key, 'clearing')
    elseif wanted and holds > 0 and ends_at <= now then
      is_own, ends_at = true, now + PATIENCE_MS
      call('HSET', state_key, 'clearing', string.format('%d ', ends_at) .. wanted .. ' ' .. worker)
    end
  end

  function it.is_awaited() return is_own and ends_at > now and holds > 0 end

  function it.ends_at() return ends_at end

  return it
end

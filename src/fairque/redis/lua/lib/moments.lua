-- What becomes possible by time alone. One idle worker, the keeper, sleeps until the next moment, and a second one for a
-- little longer, should the keeper be gone by then; the others sleep on. `keeper` in the state is the moment it knows and
-- its name, `second` a name.
--@include base
--@include state
--@include wake

local SECOND_MS = 50

-- A moment that is sooner than the one the keeper knows is told to one worker, when the script ends.
local soonest, soonest_user = math.huge, nil
local function note_moment(at, user)
  if at < soonest then soonest, soonest_user = at, user end
end

-- What the keeper knows, and its name; nothing when it did not look at its moment.
local function moment_kept()
  local at, keeper = string.match(keeper_known, '^(%d+) (.*)$')
  if at and at + SECOND_MS >= now then return tonumber(at), keeper end
end

local function reaches(worker) return worker and call('PUBLISH', prefix .. 'wake:' .. worker, '') > 0 end

function tell_of_moments()
  if soonest == math.huge then return end
  local at, keeper = moment_kept()
  if at and at <= soonest or reaches(keeper) then return end
  wake(soonest_user, 1)
end

-- Of all sets of moments, with a user that it concerns.
local function next_moment()
  local first = call('ZRANGE', due_key, 0, 0, 'WITHSCORES')
  local at, user = tonumber(first[2] or math.huge), first[1]
  if has_policies then
    first = call('ZRANGE', prefix .. 'parked', 0, 0, 'WITHSCORES')
    if first[1] and tonumber(first[2]) < at then at, user = tonumber(first[2]), first[1] end
  end
  if has_limits then
    first = call('ZRANGE', prefix .. 'held', 0, 0, 'WITHSCORES')
    if first[1] and tonumber(first[2]) < at then
      at, user = tonumber(first[2]), call('ZRANGE', prefix .. 'held-users:' .. first[1], 0, 0)[1]
    end
  end
  return at, user
end

local function find_second(user, second, keeper)
  if second ~= keeper and reaches(second) then return end
  call('HDEL', state_key, 'second')
  wake(user, 1, keeper)
end

-- A worker goes to sleep. Returns until when: the next moment, a little later, or for ever when others see to it.
local function keep_moment(worker)
  soonest = math.huge -- this worker knows
  local at, user = next_moment()
  local kept_at, keeper = moment_kept()
  local second = call('HGET', state_key, 'second')
  if at == math.huge then
    if keeper == worker then call('HDEL', state_key, 'keeper') end
    return at
  end
  if kept_at and kept_at <= at and keeper ~= worker then
    if second and second ~= worker then return math.huge end
    call('HSET', state_key, 'second', worker)
    return at + SECOND_MS
  end
  call('HSET', state_key, 'keeper', string.format('%d ', at) .. worker)
  if not kept_at or at < kept_at then
    find_second(user, second, worker)
  elseif second == worker then
    call('HDEL', state_key, 'second')
  end
  return at
end

-- True: it was one of the two.
local function forget_keeper(worker)
  local _, keeper = moment_kept()
  local field = keeper == worker and 'keeper' or keeper and call('HGET', state_key, 'second') == worker and 'second'
  if field then call('HDEL', state_key, field) end
  return field
end

-- A worker has no time for it any more.
local function hand_moment_on(worker)
  if not forget_keeper(worker) then return end
  local at, user = next_moment()
  if at < math.huge and not reaches(call('HGET', state_key, 'second')) then wake(user, 1, worker) end
end

-- What is due comes to its lane.
--@include base
--@include state
--@include task
--@include place
--@include wake
--@include fair
--@include first_moment

local function new_promotion(claim, work)
  --@fields Claim claim: worker want priority_step_ms
  local it = {}
  local step_us = priority_step_ms * 1000
  local PROMOTIONS, LOOKS = 200, 20
  local SPARE = 10 -- of one user beyond what is wanted: other workers find something, too

  -- done: those that are in their lanes.
  local function promote(user, most, done)
    local waiting = place_key('scheduled', user)
    local ids = call('ZRANGEBYSCORE', waiting, '-inf', '(' .. now + 1, 'LIMIT', 0, most)
    for _, id in ipairs(ids) do
      local key = task_key(user, id)
      local known = call('HMGET', key, 'lane', 'score', 'priority', 'watched')
      local lane, score = known[1], known[2]
      if not score then lane, score = score_of(tonumber(known[3] or 3), step_us) end
      call('HSET', key, 'state', 'queued', 'queued', now)
      place(user, id, lane, score)
      done[#done + 1] = id
      if known[4] then publish(user, id, 'waiting') end
    end
    if #ids > 0 then
      call('ZREM', waiting, unpack(ids))
      count('scheduled', -#ids)
      work.promoted[user] = (work.promoted[user] or 0) + #ids
    end
    local at = end_turn(due_key, waiting, user)
    if at then note_moment(at, user) end
  end

  -- By turns of users.
  function it.promote_due()
    local users = call('ZRANGEBYSCORE', due_key, '-inf', now, 'LIMIT', 0, LOOKS)
    local most = math.min(want + SPARE, math.floor(PROMOTIONS / #users))
    for _, user in ipairs(users) do
      local done = {}
      local is_done, failure = pcall(promote, user, most, done)
      if not is_done then damage().leave_scheduled(user, done, failure) end
    end
  end

  -- What was promoted or let in again, and not taken by this call, is news for other workers.
  function it.announce()
    if governed and governed.all_paused then return end
    local function tell(user, tasks)
      if nodes.is_ready(nodes.user(user)) then wake(user, tasks, worker) end
    end
    for user, tasks in pairs(work.promoted) do
      local is_done, failure = pcall(tell, user, tasks)
      if not is_done then damage().note(user, failure) end
    end
  end

  return it
end

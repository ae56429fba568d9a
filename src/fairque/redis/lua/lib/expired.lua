-- The end of tasks that have not begun in time.
--@include base
--@include state
--@include metrics
--@include fair
--@include limits
--@include canceled
--@include depend
--@include expiry

-- By turns of users. Records are kept for `keep_ms`. A call that does this passes on what comes of it.
local function expire_due(keep_ms)
  local ENDS, LOOKS = 100, 20 -- of one call: tasks, and users

  local function expire_of(user, most)
    for _, id in ipairs(call('ZRANGEBYSCORE', place_key('expiring', user), '-inf', now, 'LIMIT', 0, most)) do
      cancel_task(user, id, 'expired', keep_ms)
      deadlines.forget(user, id)
    end
    deadlines.had_its_turn(user)
  end

  local users = deadlines.due(LOOKS)
  for _, user in ipairs(users) do
    local is_done, failure = pcall(expire_of, user, math.floor(ENDS / #users))
    if not is_done then
      damage().note(user, failure)
      deadlines.pass_over(user)
    end
  end
end

-- A worker that got too little goes to sleep; one that got enough does not.
--@include base
--@include state
--@include places
--@include limits
--@include keeper
--@include work
--@include bytes

local function new_waiting(claim, work, stealing, serving)
  --@fields Claim claim: worker steals
  local it = {}
  local LOOKS = 20

  -- An idle moment, in which nobody waits for the answer, is used to forget users that nothing remembers.
  local function prune_users()
    for _, user in ipairs(call('ZRANGEBYSCORE', users_key, '-inf', now - USER_TTL, 'LIMIT', 0, LOOKS)) do
      if call('EXISTS', prefix .. 'bytes:' .. user) == 1 then (bytes or new_bytes()).prune(user) end
      local kept = call('EXISTS', prefix .. 'user:' .. user, prefix .. 'bytes:' .. user, places_of(user))
      if kept > 0 then
        call('ZADD', users_key, now, user)
      else
        call('ZREM', users_key, user)
      end
    end
  end

  -- The worker wants to be told; how long may it sleep when nobody tells it?
  local function in_waiting_sets(verb)
    for _, name in ipairs(work.groups) do
      call(verb, name == '*' and prefix .. 'waiting' or prefix .. 'waiting:' .. name, worker)
    end
  end

  function it.wait()
    if work.delivered == 0 then prune_users() end
    in_waiting_sets('SADD')
  end

  function it.next_event()
    local at = new_keeping(worker).keep()
    if steals then at = math.min(at, stealing.next_look()) end
    if call('EXISTS', prefix .. 'announcements') == 1 or serving.was_cut() or work.is_swept or work.is_weighing then at = now end
    if limited and limited.is_counting() then at = now end
    return at < math.huge and math.max(0, at - now) or -1
  end

  -- A message to a busy worker would be missed by an idle one.
  function it.stay_awake()
    in_waiting_sets('SREM')
    if keeper_known ~= '' then new_keeping(worker).hand_on() end
  end

  return it
end

-- Services whose cost is their time: what they run is charged while they run, so that none is far from what it has used.
-- task:<u>:<id>  charged         what this delivery was charged so far
--                charged_before  what the task was charged for deliveries that were stolen or put back
-- run-times      name → 'number mean' of what tasks of a name took lately, in seconds; '' stands for all names. Of a
--                thousand names at most
--@include base
--@include state
--@include message
--@include fair

local function new_charging()
  local it, run_times = {}, prefix .. 'run-times'
  local RENEWAL = 0.2 -- of a lease: the interval of worker/renewal.py
  local FIRST_ESTIMATE, MEAN_OF = 0.1, 32
  local MOST_NAMES = 1000

  local function estimate(name)
    local known = call('HGET', run_times, name) or call('HGET', run_times, '')
    return known and tonumber(string.match(known, ' (.*)')) or FIRST_ESTIMATE
  end

  -- No more than what is known at the first renewal: a task that takes less gives no more than that back.
  function it.begin(user, id, name, cost, lease_ms)
    local charged = cost * math.min(estimate(name), RENEWAL * lease_ms / 1000)
    call('HSET', task_key(user, id), 'charged', charged)
    return charged
  end

  -- Another delivery follows, which is charged from nothing on.
  function it.interrupt(user, id, charged, before)
    if not charged then return end
    local key = task_key(user, id)
    call('HSET', key, 'charged', 0, 'charged_before', charged + (before or 0))
  end

  -- It is still running.
  function it.go_on(user, id, cost, charged, started)
    local used = cost * math.max(0, now - started) / 1000
    if used <= charged then return end
    call('HSET', task_key(user, id), 'charged', used)
    adjust(user, used - charged)
  end

  -- What the delivery cost. What did not run, as its worker died or nobody knows it, costs what it was thought to: nobody
  -- is served for nothing.
  function it.finish(user, cost, charged, run, more)
    local used = (run > 0 and cost * run / 1000 or charged) + more
    if used ~= charged then adjust(user, used - charged) end
    return used
  end

  -- Beyond so many names a new one takes the place of one at random: of names that nobody uses any more, sooner or later.
  local function make_room()
    if call('HLEN', run_times) < MOST_NAMES then return end
    for _, name in ipairs(call('HRANDFIELD', run_times, 2)) do
      if name ~= '' then return call('HDEL', run_times, name) end
    end
  end

  local function learn_one(name, seconds)
    local known = call('HGET', run_times, name)
    if not known then make_room() end
    local n, took = string.match(known or '0 0', '(.*) (.*)')
    n = math.min(n + 1, MEAN_OF)
    call('HSET', run_times, name, string.format('%d %.9g', n, took + (seconds - took) / n))
    call('PEXPIRE', run_times, USER_TTL)
  end

  function it.learn(user, id, seconds)
    local name = name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
    if name ~= '' then learn_one(name, seconds) end
    learn_one('', seconds)
  end

  return it
end

-- Services whose cost is their time: what they run is charged while they run, so that none is far from what it has used.
-- task:<u>:<id>  charged         what this delivery was charged so far
--                charged_before  what the task was charged for deliveries that were stolen or put back
--@include base
--@include state
--@include message
--@include fair
--@include run_times

local function new_charging()
  local it, times = {}, new_run_times()
  local RENEWAL = 0.2 -- of a lease: the interval of worker/renewal.py
  local FIRST_ESTIMATE = 0.1

  local function estimate(name) return times.mean(name) or times.mean('') or FIRST_ESTIMATE end

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

  function it.learn(user, id, seconds)
    times.learn(name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD)), 1, seconds)
  end

  return it
end

-- How long tasks of a name ran lately.
-- run-times  name → 'number mean' in seconds; '' stands for all names. Of a thousand names at most
-- These are estimates: where the key is of another type, nothing is known, and nothing fails.
--@include base

local function new_run_times()
  local it, run_times = {}, prefix .. 'run-times'
  local MEAN_OF, MOST_NAMES = 32, 1000

  -- Second: of how many it is.
  function it.mean(name)
    local known = redis.pcall('HGET', run_times, name)
    if type(known) ~= 'string' then return nil, 0 end
    local n, mean = string.match(known, '^(%S+) (%S+)$')
    return tonumber(mean), tonumber(n) or 0
  end

  -- Beyond so many names a new one takes the place of one at random: of names that nobody uses any more, sooner or later.
  local function make_room()
    if call('HLEN', run_times) < MOST_NAMES then return end
    for _, name in ipairs(call('HRANDFIELD', run_times, 2)) do
      if name ~= '' then return call('HDEL', run_times, name) end
    end
  end

  local function learn(name, runs, seconds)
    local mean, n = it.mean(name)
    if not mean then
      make_room()
      mean = seconds
    end
    n = math.min(n + runs, MEAN_OF)
    mean = mean + (seconds - mean) * math.min(1, runs / n)
    call('HSET', run_times, name, string.format('%d %.9g', n, mean))
    call('PEXPIRE', run_times, USER_TTL)
  end

  -- So many took so long each, in the mean.
  function it.learn(name, runs, seconds)
    if name ~= '' then pcall(learn, name, runs, seconds) end
    pcall(learn, '', runs, seconds)
  end

  return it
end

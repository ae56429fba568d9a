-- A user has a limit of its bytes from now on: what is there already is counted, some keys at each claim. Until then only
-- what came since is in its count.
-- weighing-spaces  list  <u>:<namespace> with values that are still to be counted
-- In the state: weighing, the counts that are under way; weigh_cursor, how far they are among all keys, 'end' when past
-- them; space_cursor, the same among the values of the first namespace.
--@include base
--@include state
--@include bytes

local function new_weighing()
  local it = {}
  local counted = bytes or new_bytes()
  local KEYS_A_CALL, VALUES_A_CALL = 200, 10
  local spaces_key = prefix .. 'weighing-spaces'

  local function begin(gen)
    local before = call('HGET', state_key, 'weighing')
    call('HSET', state_key, 'weighing', before and before .. ' ' .. gen or gen, 'weigh_cursor', '0')
    call('HDEL', state_key, 'space_cursor')
    call('DEL', spaces_key)
  end

  -- All that it has is counted.
  function it.recount(user)
    counted.forget(user)
    if not new_bytes().limit(user) then return end
    local gen = string.format('%d', now_us)
    call('HSET', prefix .. 'bytes:' .. user, 'gen', gen)
    call('ZADD', users_key, 'NX', now, user)
    begin(gen)
  end

  -- The limit of `whose` came, or went: the limit of everybody may be left.
  function it.change_limit(whose, is_set)
    local gen = string.format('%d', now_us)
    count('byte_limits', is_set and 1 or -1)
    if whose == '*' then
      if not is_set then return end
      call('HSET', state_key, 'byte_gen', gen)
    else
      return it.recount(whose)
    end
    begin(gen)
  end

  local look = {}

  local function look_at(user, part, key, size)
    if size > 0 then counted.discover(user, part, size, counted.expiry_of(key)) end
  end

  local function look_at_task(rest, at)
    local user, id = string.match(rest, '^([^:]*):(.*)$')
    if not counted.is_counting(user) then return end
    local part = counted.parts_of(user, id)[at]
    look_at(user, part[1], part[2], part[3])
  end
  function look.body(rest) look_at_task(rest, 1) end
  function look.errors(rest) look_at_task(rest, 2) end
  function look.result(rest) look_at_task(rest, 3) end
  function look.chunks(rest) look_at_task(rest, 4) end

  function look.ends(rest)
    local user, id = string.match(rest, '^([^:]*):(.*)$')
    local key = ends_key(user, id)
    if counted.is_counting(user) then look_at(user, 'ends:' .. id, key, call('STRLEN', key)) end
  end

  function look.batch(rest)
    local user, batch = string.match(rest, '^([^:]*):(.*)$')
    local key = prefix .. 'batch:' .. rest
    if not counted.is_counting(user) then return end
    look_at(user, 'batch:' .. batch, key, call('HSTRLEN', key, 'on_complete') + call('HSTRLEN', key, 'on_success'))
  end

  function look.xcom(rest)
    if counted.is_counting(string.match(rest, '^[^:]*')) then call('RPUSH', spaces_key, rest) end
  end

  function look.schedule(rest)
    local key = prefix .. 'schedule:' .. rest
    local user = call('HGET', key, 'user')
    if user and counted.is_counting(user) then look_at(user, 'schedule:' .. rest, key, counted.size_of_schedule(rest)) end
  end

  local function count_values(space)
    local user, namespace = string.match(space, '^([^:]*):(.*)$')
    local cursor = call('HGET', state_key, 'space_cursor') or '0'
    local page = call('HSCAN', prefix .. 'xcom:' .. space, cursor, 'COUNT', VALUES_A_CALL)
    for at = 1, #page[2], 2 do
      local key, value = page[2][at], page[2][at + 1]
      if counted.is_counting(user) then counted.discover_value(user, namespace, key, #key + #value) end
    end
    if page[1] ~= '0' then return call('HSET', state_key, 'space_cursor', page[1]) end
    call('LPOP', spaces_key)
    call('HDEL', state_key, 'space_cursor')
  end

  local function look_at_some(cursor)
    local literal = string.gsub(prefix, '[*?%[%]\\^-]', '\\%0')
    local page = call('SCAN', cursor, 'MATCH', literal .. '*', 'COUNT', KEYS_A_CALL)
    for _, key in ipairs(page[2]) do
      local kind, rest = string.match(string.sub(key, #prefix + 1), '^(%a+):(.*)$')
      if kind and look[kind] then look[kind](rest) end
    end
    call('HSET', state_key, 'weigh_cursor', page[1] == '0' and 'end' or page[1])
  end

  -- True: there is more.
  function it.go_on()
    local space, cursor = call('LINDEX', spaces_key, 0), call('HGET', state_key, 'weigh_cursor') or '0'
    if space then
      count_values(space)
    elseif cursor ~= 'end' then
      look_at_some(cursor)
    else
      call('HDEL', state_key, 'weighing', 'weigh_cursor')
      call('UNLINK', prefix .. 'weighed')
      return false
    end
    return true
  end

  return it
end

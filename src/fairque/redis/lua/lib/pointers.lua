-- Under which key a task is alone.
-- unique:<u>:<hash>  string  the task that has the key. Of one that lives, it lasts until that begins or ends; with a time to
--                            live, as long as that
-- `unique` of a task is '<kind> <hash> <ms>', kind and ms as `Rules` has them: it has its key as long as that is there.
--@include base

--@once
local pointers = {}
local OVER_AT_THE_BEGIN = { started = true, debounce = true }

local function key_of(user, hash) return prefix .. 'unique:' .. user .. ':' .. hash end

-- The task that has the key; nil where none has it any more. Second: for how many ms it has it whatever it does.
function pointers.holder(user, hash)
  local key = key_of(user, hash)
  local id = call('GET', key)
  if not id then return nil end
  local left = call('PTTL', key)
  if left >= 0 then return id, left end
  local held = call('HGET', task_key(user, id), 'unique')
  return held and string.match(held, ' (%S+) ') == hash and id or nil
end

-- `ms`: nil for as long as the task has it.
function pointers.point(user, hash, id, ms)
  if ms then call('SET', key_of(user, hash), id, 'PX', ms) else call('SET', key_of(user, hash), id) end
end

-- Of a task that does not need its key any more. `lingers`: it has run to its end, after which some keep it for a time.
function pointers.let_go(user, id, unique, lingers)
  local kind, hash, ms = string.match(unique, '^(%S+) (%S+) (%d+)$')
  if not kind then return end
  local key = key_of(user, hash)
  if redis.pcall('GET', key) ~= id then return end
  if lingers and kind == 'after' then call('PEXPIRE', key, ms) else call('DEL', key) end
end

-- It begins.
function pointers.begin(user, id, unique)
  if not OVER_AT_THE_BEGIN[string.match(unique, '^%S+')] then return end
  pointers.let_go(user, id, unique)
  call('HDEL', task_key(user, id), 'unique')
end

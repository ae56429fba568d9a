#!lua flags=allow-oom
-- Read and remove values that the tasks of a user share.
-- KEYS[1]  state
-- ARGV     operation, user, then
--          pull    number of namespaces, namespaces ..., keys ...
--          keys    namespace, expiry in ms to begin at, how many of that expiry to skip, limit
--          delete  namespace, keys ...
--          clear   namespace
-- Returns  pull: per key its value from the first namespace that has it, or nil | keys: key, expiry in ms ..., by expiry
--          | delete, clear: 1
-- Cost     pull O(namespaces keys), plus at most 16 expired values removed per namespace; keys O(log values + limit);
--          delete O(keys log values); clear O(1)
--@include base
--@include xcom
local xcom = new_xcom()
local user = ARGV[2]
local operations = {}

local function first_value(namespaces, key)
  for _, namespace in ipairs(namespaces) do
    local value = xcom.pull(user, namespace, key)
    if value then return value end
  end
  return false
end

function operations.pull()
  local last = 3 + ARGV[3]
  local namespaces, found = { unpack(ARGV, 4, last) }, {}
  for at = last + 1, #ARGV do found[at - last] = first_value(namespaces, ARGV[at]) end
  for _, namespace in ipairs(namespaces) do xcom.sweep(user, namespace) end
  return found
end

-- Where the page before this one ended may have expired meanwhile.
function operations.keys()
  local expiries = xcom.expiries(user, ARGV[3])
  local from, skip = tonumber(ARGV[4]), ARGV[5]
  if from <= now then from, skip = now + 1, 0 end
  return call('ZRANGEBYSCORE', expiries, from, '+inf', 'WITHSCORES', 'LIMIT', skip, ARGV[6])
end

function operations.delete()
  xcom.remove(user, ARGV[3], { unpack(ARGV, 4) })
  return 1
end

function operations.clear()
  xcom.clear(user, ARGV[3])
  return 1
end

return operations[ARGV[1]]()

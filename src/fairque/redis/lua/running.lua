#!lua flags=no-writes
-- What runs: some tasks of each user, so that nobody's many hide the others', or what a worker has.
-- KEYS[1]  state
-- Returns  {now, 1 where there may be more, per task: user, id, name, attempt, ms of its start, worker}
-- Cost     O(lanes looked at + tasks)
--@include base
--@include message
--@arguments
local found = { now, 0 }
local left = most

local function note(user, id)
  local fields = call('HMGET', task_key(user, id), 'attempt', 'started', 'worker')
  local name = name_in(call('GETRANGE', body_key(user, id), 0, LONGEST_HEAD))
  for _, value in ipairs({ user, id, name, attempt_in(fields[1]), fields[2] or '', fields[3] or '' }) do
    found[#found + 1] = value
  end
  left = left - 1
end

-- Pairs of a stream id and the id of a task. An error where the stream is damaged, or has no group: nothing is told of it.
local function entries_of(stream, count)
  if worker == '' then return redis.pcall('XRANGE', stream, '-', '+', 'COUNT', count) end
  local entries = {}
  for at, delivery in ipairs(redis.pcall('XPENDING', stream, 'workers', '-', '+', count, worker)) do
    entries[at] = redis.pcall('XRANGE', stream, delivery[1], delivery[1])[1]
  end
  return entries
end

local members = call('ZRANGE', leases_key, 0, lanes - 1)
local each = worker ~= '' and most or math.max(1, math.floor(most / math.max(1, #members)))
for _, member in ipairs(members) do
  local lane, user = string.match(member, '^([^:]+):(.*)$')
  local count = math.min(each, left)
  if count == 0 then break end
  local entries = entries_of(stream_key(lane, user), count)
  for _, entry in ipairs(entries) do try_alone(note, user, entry[2][2]) end
  if #entries == count then found[2] = 1 end
end
if call('ZCARD', leases_key) > #members or left == 0 then found[2] = 1 end
return found

#!lua
-- Keep what running tasks have yielded.
-- KEYS[1]  state
-- Returns  per task: 1 appended (also by an earlier try of the same call); 0 or less it is no longer this worker's:
--          lib/whereabouts.lua has why; {'full', bytes that it would have} or {'heavy', user, bytes used, limit, bytes asked
--          for, ms}: nothing was appended; or the text of an error
-- Cost     O(size), plus what earlier attempts left where room is made for the last one
-- chunks:<u>:<id>  stream  batches: <run>-<number of its last chunk in the run> → of: the delivery, bytes: of the run so
--                          far, earlier: of the runs before that are still there, chunks: a msgpack array
--@include base
--@include absent
--@include state
--@include bytes
--@include whereabouts
--@arguments
local TOLD_BYTES = 1024 -- a batch that is no larger is told with the message
local ENTRY_BYTES = 64 -- what a batch takes beside its chunks, so that many small ones are no way around the limit

-- Where a delivery stands: run, number of its last chunk, bytes of the run, bytes of the runs before. Each delivery that
-- yields begins a run: a release, a steal and a requeue do so without an attempt of their own.
local function standing_of(key, delivery)
  local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if not last then return 1, 0, 0, 0 end
  local run, number = string.match(last[1], '(%d+)-(%d+)')
  local size, earlier = tonumber(last[2][4]), tonumber(last[2][6])
  if last[2][2] == delivery then return tonumber(run), tonumber(number), size, earlier end
  return run + 1, 0, 0, size + earlier
end

local function append(batch)
  --@fields YieldedChunks batch
  if has_damaged or has_moved then refuse_leaving(user) end
  local task = task_key(user, id)
  local known = call('HMGET', task, 'stream_id', 'attempt')
  if known[1] ~= stream_id or attempt_in(known[2]) ~= attempt then return whereabouts(user, id, worker) end
  local key, delivery, last = chunks_key(user, id), stream_id .. ' ' .. attempt, first + many - 1
  local run, number, size, earlier = standing_of(key, delivery)
  if last <= number then return 1 end
  local had = size + earlier
  size = size + #chunks + ENTRY_BYTES
  local function fits(total) return total <= most_bytes and not (bytes and bytes.refuse(user, total - had)) end
  local kept = (earlier == 0 or fits(size + earlier)) and earlier or 0
  if size + kept > most_bytes then return { 'full', size + kept } end
  local too_heavy = bytes and bytes.refuse(user, size + kept - had)
  if too_heavy then return too_heavy end
  if kept < earlier then call('XTRIM', key, 'MINID', string.format('%d-0', run)) end
  if number == 0 then
    call('HSETNX', task, 'queued', queued_ms) -- settle looks closer at a task with this field
    call('HSET', task, 'yielded', 1)
  end
  local at = string.format('%d-%d', run, last)
  call('XADD', key, at, 'of', delivery, 'bytes', size, 'earlier', kept, 'chunks', chunks)
  if bytes then
    bytes.change(user, 'chunks:' .. id, -had)
    bytes.change(user, 'chunks:' .. id, size + kept)
  end
  redis.pcall('SPUBLISH', key, #chunks <= TOLD_BYTES and string.format('%s %d=', at, many) .. chunks or at)
  return 1
end

local function told(batch, failure)
  --@fields YieldedChunks batch: user id
  local key, text = chunks_key(user, id), text_of(failure)
  local is_key = type(redis.pcall('XLEN', key)) == 'table'
  return is_key and text .. ': ' .. key or text
end

local answers = {}
for at, batch in ipairs(batches) do
  local is_done, answer = pcall(append, batch)
  answers[at] = is_done and answer or told(batch, answer)
end
if save_bytes then save_bytes() end
return answers

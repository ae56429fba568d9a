#!lua flags=no-writes
-- A page of the tasks of a user that are in one place, in its order, or those that are named. Without arguments, results
-- and tracebacks of earlier attempts: what a listing shows.
-- KEYS[1]  state
-- Returns  nil when that id is not in the place, or per task: {id, its score or '', head of the body or '', name, task fields, last error record or '', and of one
--          that has ended: letter of its state, name, attempt, queued, started, run in ms, worker, reason of a cancel}
-- Cost     O(log n + returned)
--@include base
--@include moved
--@include message
--@arguments
refuse_moved(user)
local HEAD, RECORD = 600, 4096 -- enough bytes for what stands before arguments, and before a result
local found = {}

local function ended_of(id)
  local record = call('GETRANGE', result_key(user, id), 0, RECORD - 1)
  if record == '' then return {} end
  local letter = string.sub(record, 10, 10)
  local parts = { pcall(cmsgpack.unpack_limit, record, letter == 'C' and 11 or 6, 11) }
  if not parts[1] then return { letter, '', '0', '0', '0', '0', '', '' } end
  -- behind the two of pcall and unpack_limit: name, attempt, queued, started, run, worker, value, kept, kind, type, message
  return { letter, parts[3], string.format('%d', parts[4]), string.format('%d', parts[5]), string.format('%d', parts[6]),
    string.format('%.3f', parts[7]), parts[8], letter == 'C' and parts[13] or '' }
end

local function note(id, score)
  local body = redis.pcall('GETRANGE', body_key(user, id), 0, HEAD - 1)
  if type(body) ~= 'string' then body = '' end
  found[#found + 1] = {
    id, score, string.sub(body, 1, 18), name_in(body), call('HGETALL', task_key(user, id)),
    call('LINDEX', errors_key(user, id), -1) or '', ended_of(id),
  }
end

local function note_sorted(key)
  local rank = after == '' and -1 or call('ZRANK', key, after)
  if not rank then return nil end
  local first = rank + 1
  local page = call('ZRANGE', key, first, first + most - 1, 'WITHSCORES')
  for at = 1, #page, 2 do note(page[at], string.format('%d', page[at + 1])) end -- times have fractions
  return found
end

local function note_deliveries(lane)
  local first = '-'
  if after ~= '' then
    local known = call('HMGET', task_key(user, after), 'state', 'lane', 'stream_id')
    if known[1] ~= 'started' or known[2] ~= lane then return nil end
    first = '(' .. known[3]
  end
  for _, entry in ipairs(call('XRANGE', stream_key(lane, user), first, '+', 'COUNT', most)) do note(entry[2][2], '') end
  return found
end

if place == '' then
  for _, id in ipairs(named) do note(id, '') end
  return found
end
local lane = string.match(place, '(.*)-stream')
if lane then return note_deliveries(lane) end
return note_sorted(place_key(place, user))

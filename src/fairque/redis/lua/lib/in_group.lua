-- Streams whose group may be gone.
--@include base
--@include fair

-- A command about the deliveries of a stream; only where its group is gone, that is made anew.
local function in_group(user, stream, command, ...)
  local reply = redis.pcall(command, stream, 'workers', ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, '^NOGROUP') then error(reply, 0) end
  damage().mend_group(stream, user)
  return call(command, stream, 'workers', ...)
end

-- The idle time of a delivery begins anew. Whose worker has it, by the fields of its task, is handed it again where the
-- stream does not have it: its group, or all of it, was lost.
local function renew_lease(user, id, lane, stream_id, worker)
  local stream = stream_key(lane, user)
  local held = redis.pcall('XCLAIM', stream, 'workers', worker, 0, stream_id, 'JUSTID')
  if held[1] then return end
  if held.err and not string.find(held.err, '^NOGROUP') then error(held, 0) end
  damage().mend_stream(stream, lane, user, id, stream_id)
end

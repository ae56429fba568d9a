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

-- Renewal of one delivery.
--@include base
--@include fair

-- The idle time of a delivery begins anew. Whose worker has it, by the fields of its task, is handed it again where the
-- stream does not have it: its group, or all of it, was lost.
local function renew_lease(user, id, lane, stream_id, worker)
  local stream = stream_key(lane, user)
  local held = redis.pcall('XCLAIM', stream, 'workers', worker, 0, stream_id, 'JUSTID')
  if held[1] then return end
  if held.err and not string.find(held.err, '^NOGROUP') then error(held, 0) end
  damage().mend_stream(stream, lane, user, id, stream_id)
end

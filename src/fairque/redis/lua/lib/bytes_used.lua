-- What is told of the bytes of a user, without a write.
--@include base

-- '' where nothing is counted.
local function bytes_used(user)
  local counts = prefix .. 'bytes:' .. user
  local used = call('HGET', counts, 'used')
  if not used then return '' end
  local gone = 0
  local buckets = call('ZRANGEBYSCORE', prefix .. 'bytes-expiring:' .. user, '-inf', math.floor(now / 10000), 'LIMIT', 0, 500)
  if #buckets > 0 then
    for _, size in ipairs(call('HMGET', counts, unpack(buckets))) do gone = gone + (size or 0) end
  end
  return string.format('%d', math.max(0, used - gone))
end

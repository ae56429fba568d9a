-- The workers that gave a sign of life within so many ms and have said what they are: {name, fields}. One that has claimed
-- but not renewed yet has no record, and one whose record is gone is no worker either.
--@include base

local function live_workers(silent_ms)
  local found = {}
  for _, worker in ipairs(call('ZRANGEBYSCORE', prefix .. 'workers', now - silent_ms, '+inf')) do
    local fields = call('HGETALL', prefix .. 'worker:' .. worker)
    if fields[1] then found[#found + 1] = { worker, fields } end
  end
  return found
end

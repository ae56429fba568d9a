-- What is measured of a user, in `metrics:<u>`, and of the whole queue, in `metrics:*`: a msgpack array, read and written as
-- a whole.
--  1 finished   2 failed  3 canceled  4 retried (totals)   5 cost   6 busy (microseconds)
--  7 recent cost   8 recent busy seconds   9 recent services   10 when it was written, in ms   11 since when all is measured: ms before
-- 12 services   13 cost   14 busy microseconds: of the hour in which it was written
-- 15 ... the histogram of waits: bucket, count, of those that have one
local WAITS, WAIT_BUCKETS = 15, 22 -- bucket k holds waits below 2^k ms, the last one all others
local RECENT_MS = 60000 -- what is recent fades with this time constant

-- Recent services, and in how many ms they would have been as many at that rate.
local function recent_services(blob)
  local m = cmsgpack.unpack(blob)
  local span = RECENT_MS * (1 - math.exp((m[10] - m[11] - now) / RECENT_MS))
  return m[9] * math.exp((m[10] - now) / RECENT_MS), span
end

-- What is measured of a user, in `metrics:<u>`, and of the whole queue, in `metrics:*`: 15 doubles and the histogram of
-- waits. One string that is read and written as a whole: a third of the time that as many hash fields take.
--  1 finished   2 failed  3 canceled  4 retried (totals)   5 cost   6 busy (seconds)
--  7 recent cost   8 recent busy   9 recent services   10 when those three were written   11 since when all is measured
-- 12 the hour   13 its services   14 its cost   15 its busy seconds
local WAITS, WAIT_BUCKETS = 15, 22 -- bucket k holds waits below 2^k ms, the last one all others
local RECENT_MS = 60000 -- what is recent fades with this time constant

local function metrics_format() return '<' .. string.rep('d', WAITS) .. string.rep('I4', WAIT_BUCKETS) end

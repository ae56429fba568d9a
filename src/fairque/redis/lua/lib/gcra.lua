-- Rates, by GCRA (as in ATM, ITU-T I.371): a theoretical arrival time, `tat`, runs ahead of the clock by less than the
-- burst. All in us; `interval` is the time between two starts at the rate itself. A `tat` counts for the interval that it
-- was counted with, `tat_of`: a rate that is changed begins anew.
--@include base

local function rate_tat(tat, tat_of, interval) return tonumber(tat_of or 0) == interval and tonumber(tat) or 0 end

local function rate_opens_at(tat, interval, burst) return tat - (burst - 1) * interval end

-- How many may start now.
local function rate_allows(tat, interval, burst)
  return math.min(burst, math.floor((now_us - rate_opens_at(tat, interval, burst)) / interval) + 1)
end

-- The `tat` after one more start.
local function rate_after_start(tat, interval) return math.max(now_us, tat) + interval end

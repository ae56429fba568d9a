#!lua
-- The home of keys hears what a partition asks for, and gives out what is free.
-- KEYS[1]  state
-- Returns  {partition, {what it is told: see Told}} per partition
-- Cost     O(asks * partitions)
--@include alive
--@include lending
--@arguments
limiting()
local loans = new_loans()
local lending, woken = new_lending(), {}

local function hear(ask)
  --@fields Ask ask: key epoch
  if not loans.is_divided or not loans.is_home(key) then return end
  if lending.hear(partition, ask) then lending.tell_over(key, partition, epoch) end
  lending.share_out(key, partition, asked_us)
  limited.let_in(key, woken)
end

for _, ask in ipairs(asks) do
  --@fields Ask ask: key
  local is_done, failure = try_alone(hear, ask)
  if not is_done then redis.log(redis.LOG_WARNING, 'fairque: ' .. key .. ': ' .. text_of(failure)) end
end
for user, tasks in pairs(woken) do wake(user, tasks) end
save_state()
local tells = {}
for to, told in pairs(lending.tells) do tells[#tells + 1] = { to, told } end
return tells

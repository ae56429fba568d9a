#!lua
-- Give up what a partition that is gone has borrowed of keys whose home this one is: others may have it.
-- KEYS[1]  state
-- Returns  {the revision of what governs all users, how many places, {partition, {what it is told: see Told}} per partition}
-- Cost     O(keys * partitions)
--@include alive
--@include lending
--@include revision
--@arguments
local lending, woken, places = new_lending(), {}, 0
if revision < 0 then
  note_revision(revision, true)
  call('HSET', state_key, 'forfeited_at', known_revision())
end
for _, k in ipairs(keys) do
  if new_loans().is_home(k) then
    places = places + lending.forfeit(k, partition)
    lending.share_out(k)
    limited.let_in(k, woken)
  end
end
for user, tasks in pairs(woken) do wake(user, tasks) end
save_state()
local tells = {}
for to, told in pairs(lending.tells) do tells[#tells + 1] = { to, told } end
return { known_revision(), places, tells }

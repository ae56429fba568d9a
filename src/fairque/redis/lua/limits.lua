#!lua flags=allow-oom
-- Set limits, by hand or as code declares them, or take them back; pause all tasks of a name, or go on with them.
-- KEYS[1]  state
-- Returns  {the revision of what governs all users, 1 where something has changed; or -1: see lib/revision.lua}
-- Cost     O(limits)
--@include base
--@include state
--@include alive
--@include absent
--@include limit_records
--@include revision
--@arguments
local source = declared and 'code' or 'hand'
if has_damaged or has_moved then
  for _, limit in ipairs(limits) do
    --@fields LimitRecord limit: record
    refuse_leaving(string.match(record, '^[^:=]*')) -- nobody, where it is about all
  end
end
if follows(revision) then return { known_revision(), -1 } end

local function set(limit)
  --@fields LimitRecord limit
  return change_record(record, function(key)
    if paused ~= nil then
      if paused then call('HSET', key, 'paused', 1) else call('HDEL', key, 'paused') end
    elseif is_set then
      call('HSET', key, source, string.format('%s %s %s', max or '-', interval_us or '-', burst or '-'))
    else
      call('HDEL', key, source)
    end
  end)
end

local has_changed = false
for _, limit in ipairs(limits) do has_changed = set(limit) or has_changed end
note_revision(revision, has_changed)
save_state()
forget_limits_if_none()
return { known_revision(), has_changed and 1 or 0 }

#!lua flags=allow-oom
-- Change a policy: of a user, of a group, or of everybody who does not say otherwise.
-- KEYS[1]  state
-- Returns  {the revision of what governs all users, 1 where that has changed; or -1: see lib/revision.lua}
-- Cost     O(log users); the default of '*' is brought to those who wait by the claims that follow
--@include base
--@include state
--@include alive
--@include change_policy
--@include revision
--@arguments
local is_user = whose ~= '*' and string.byte(whose) ~= 64
if has_damaged or has_moved then
  if is_user then refuse_leaving(whose) end
  refuse_moved_group(is_user and changes.group or not (is_user or is_behind) and whose or nil)
end
if follows(revision) then return { known_revision(), -1 } end
local before = call('GET', prefix .. 'policy:' .. whose) or ''
local has_changed = change_policy(whose, changes, forgotten) ~= before
note_revision(revision, has_changed)
save_state()
forget_policies_if_none()
return { known_revision(), has_changed and 1 or 0 }

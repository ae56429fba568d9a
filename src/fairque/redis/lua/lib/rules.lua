-- Rules that a task is put in with: what is done with it beside adding it.
--@include base
--@include state
--@include add
--@include expiry
--@include schedule_keepers

-- `is_placed`: it stands in its lane, and nothing but that is known of it.
local function obey(user, id, rules, is_placed)
  --@fields Rules rules: expires
  local key = task_key(user, id)
  if expires == '' then return end
  if is_placed then call('HSET', key, 'state', 'queued', 'enqueued', now_text, 'queued', now_text) end
  local at = due_at(expires)
  call('HSET', key, 'expires', string.format('%d', at))
  deadlines().note(user, id, at)
  tell_keepers(at)
end

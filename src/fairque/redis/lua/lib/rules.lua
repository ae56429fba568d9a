-- Rules that a task is put in with: what is done beside adding it.
--@include base
--@include state
--@include add
--@include expiry
--@include pointers
--@include schedule_keepers

-- `is_placed`: it stands in its lane, and nothing but that is known of it.
local function obey(it, is_placed)
  --@fields Rules it.rules: expires kind pointer span_ms
  local key = task_key(it.user, it.id)
  if is_placed then call('HSET', key, 'state', 'queued', 'enqueued', now_text, 'queued', now_text) end
  if expires ~= '' then
    local at = due_at(expires)
    call('HSET', key, 'expires', string.format('%d', at))
    deadlines.note(it.user, it.id, at)
    tell_keepers(at)
  end
  if kind ~= '' and kind ~= 'throttle' then
    call('HSET', key, 'unique', string.format('%s %s %d', kind, pointer, span_ms))
  end
  if kind == 'debounce' then call('HSET', key, 'first', string.format('%d', it.first or now)) end
end

-- When all else of it is there.
local function point_to(it)
  --@fields Rules it.rules: kind pointer span_ms
  if kind ~= '' then pointers.point(it.user, pointer, it.id, kind == 'throttle' and span_ms or nil) end
end

-- The breaker of a user opens after so many failures within a window; when its time is over, one success closes it.

function gates.note_end(u, ok)
  local p, key = u.policy, user_key(u.name)
  if not p.breaker_failures then return end
  u.tat = nil -- marks are read anew
  local marks = call('HMGET', key, 'open_until', 'fails', 'fails_since')
  local open_until, fails, since = tonumber(marks[1] or 0), tonumber(marks[2] or 0), tonumber(marks[3] or 0)
  if open_until > now then return end -- a straggler from before
  if open_until > 0 and ok then
    call('HDEL', key, 'open_until', 'fails', 'fails_since')
    return
  end
  if ok then return end
  if now - since > p.breaker_window then fails, since = 0, now end
  fails = fails + 1
  if open_until > 0 or fails >= p.breaker_failures then
    u.opened = true
    nodes.remember(u, 'open_until', now + p.breaker_cooldown, 'fails', 0, 'trips', (call('HGET', key, 'trips') or 0) + 1)
  else
    nodes.remember(u, 'fails', fails, 'fails_since', since)
  end
end

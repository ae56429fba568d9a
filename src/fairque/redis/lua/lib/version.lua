-- What tells that nothing in a queue has moved: of all that the totals count, something changes with each script.
--@include base

local function version_of_state()
  local fields = call('HMGET', state_key, 'arrival', 'clock', 'critical', 'normal', 'started', 'scheduled', 'deferred',
    'announcements', 'finished', 'failed', 'canceled', 'retried', 'in_hand')
  for at = 1, 13 do fields[at] = fields[at] or '' end
  return table.concat(fields, ' ')
end

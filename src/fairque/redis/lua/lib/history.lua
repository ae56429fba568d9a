-- What a delivery tells of what came before it.
--@include base

-- `known`: fields of its task. Zeros where it has none, as texts: a number is formatted each time anew. `follows`: it runs with the delivery before it.
local function history_of(known, lost, alone, follows)
  return string.format('%s %s %s %s %s %s %s %s %s %s', known.failures or '0', lost or '0', known.returned or '0',
    known.since or '0', known.queued or '0', known.canceling and '1' or '0', known.deaths or '0', alone or '0',
    known.snoozed or '0', follows and '1' or '0')
end

-- A body that cannot be handed out is told of as such.
local function load_body(user, id, max_message_bytes)
  local body = redis.pcall('GET', body_key(user, id))
  if type(body) == 'table' then return '\0not a string' end
  if body == '' then return '\0truncated: 0 bytes' end
  if body and #body > max_message_bytes then
    return '\0too large: ' .. #body .. ' bytes, the limit is ' .. string.format('%d', max_message_bytes)
  end
  return body
end

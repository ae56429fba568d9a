#!lua flags=no-writes
-- What is known of schedules: of some, or a page of those of a user or of everybody, in the order of user and id.
-- KEYS[1]  state
-- Returns  {now, the member behind which the next page begins or '', per schedule: {id, ms at which it fires next or '', fields; the messages only of named ones}}
-- Cost     O(log schedules + most)
--@include base
--@include moved
--@include schedules
--@arguments
if user ~= '' then refuse_moved(user) end
local next_after = ''
local function named()
  if #ids > 0 then return ids end
  local low, high = '-', '+'
  if user ~= '' then low, high = '[' .. user .. ':', '(' .. user .. ';' end
  if after ~= '' then low = '(' .. after end
  local found = call('ZRANGE', index_key, low, high, 'BYLEX', 'LIMIT', 0, most)
  if #found == most then next_after = found[most] end
  for at, member in ipairs(found) do found[at] = string.sub(member, string.find(member, ':', 1, true) + 1) end
  return found
end

local FIELDS = { 'user', 'name', 'spec', 'anchor', 'priority', 'delay', 'revision', 'state', 'slot', 'created', 'runs',
  'skipped', 'misfired', 'last_run', 'last_task', 'declared', 'older', 'orphaned', 'expires', 'recent' }
local fields = { unpack(FIELDS) }
if #ids > 0 then fields[#fields + 1], fields[#fields + 2] = 'body', 'callbacks' end
local listed = named()
local found = { now, next_after }
for _, found_id in ipairs(listed) do
  local values = read_schedule(found_id, unpack(fields))
  if values[1] and not (has_moved and moved_to(values[1])) then
    local flat = {}
    for at, name in ipairs(fields) do
      if values[at] then
        flat[#flat + 1] = name
        flat[#flat + 1] = values[at]
      end
    end
    found[#found + 1] = { found_id, values[8] == 'active' and call('ZSCORE', schedules_of(values[1]), found_id) or '', flat }
  end
end
return found

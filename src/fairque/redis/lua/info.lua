#!lua flags=no-writes
-- Everything known of one task.
-- KEYS[1]  state
-- Returns  {task fields, body or '', result record or '', error records, score in its lane or '', at most 1,000 of
--          those that depend on it, ms at which it is due or '', per task that it depends on, at most 100: id and state or '',
--          at most 1,000 of its children, position of the last chunk that it has yielded or ''}
-- Cost     O(size of the task)
--@include base
--@include moved
--@include standing
--@arguments
refuse_moved(user)
local function dependencies()
  local ids, found = call('SRANDMEMBER', needs_key(user, id), 100), {}
  local others = call('SRANDMEMBER', uses_key(user, id), 100)
  for at = 1, 100 - #ids do ids[#ids + 1] = others[at] end
  for at, dependency in ipairs(ids) do found[at] = { dependency, standing_of(user, dependency) } end
  return found
end

local last = call('XREVRANGE', chunks_key(user, id), '+', '-', 'COUNT', 1)[1]
local due = call('ZSCORE', place_key('scheduled', user), id)
return {
  call('HGETALL', task_key(user, id)),
  call('GET', body_key(user, id)) or '',
  call('GET', result_key(user, id)) or '',
  call('LRANGE', errors_key(user, id), 0, -1),
  call('ZSCORE', place_key('critical', user), id) or call('ZSCORE', place_key('normal', user), id) or '',
  call('SRANDMEMBER', feeds_key(user, id), 1000),
  due and string.format('%d', due) or '',
  dependencies(),
  call('SRANDMEMBER', children_key(user, id), 1000),
  last and last[1] or '',
}

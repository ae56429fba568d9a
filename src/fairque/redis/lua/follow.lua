#!lua flags=allow-oom
-- A partition that lacks changes of what governs all users takes over all of that from another one.
-- KEYS[1]  state
-- Returns  the revision that it has
-- Cost     O(limits)
--@include base
--@include state
--@include alive
--@include change_policy
--@include limit_records
--@include revision
--@arguments
if known_revision() >= revision then return known_revision() end

local told = {}
local function set(rule)
  --@fields Rule rule
  told[record] = true
  change_record(record, function(key)
    for field, said in pairs({ hand = hand, code = code, paused = paused }) do
      if said ~= '' then call('HSET', key, field, said) else call('HDEL', key, field) end
    end
  end)
end

local function drop(from, to)
  for _, record in ipairs(call('ZRANGEBYLEX', prefix .. 'limit-keys', from, to)) do
    if not told[record] then change_record(record, function(key) call('HDEL', key, 'hand', 'code', 'paused') end) end
  end
end

for _, rule in ipairs(rules) do set(rule) end
drop('[:', '(;')
drop('[=', '(>')
if policy ~= (call('GET', prefix .. 'policy:*') or '') then
  change_policy('*', policy ~= '' and cmsgpack.unpack(policy) or {}, { '*' })
end
call('HSET', state_key, 'revision', revision, 'forfeited_at', forfeited)
save_state()
forget_policies_if_none()
forget_limits_if_none()
return revision

#!lua
-- A user is to come from another partition: it stands still here, without an end; or go on with that.
-- KEYS[1]  state
-- Returns  {'arriving', how many of its records are here} | {'leaving'}: what an earlier move has left here goes first |
--          {'other', why, token}: somebody else has it | {'known'}: it has something here
-- Cost     O(log users)
--@include base
--@include state
--@include alive
--@include frozen
--@include moves
--@arguments
if call('HEXISTS', departing_key, user) == 1 then return { 'leaving' } end
local key = frozen_key(user)
local known = call('HMGET', key, 'token', 'why', 'at')
if known[1] and known[1] ~= token then return { 'other', known[2], known[1] } end
if known[1] then
  note_mover(user)
  return { 'arriving', tonumber(known[3]) }
end
local index = prefix .. 'schedule-index'
if call('ZSCORE', users_key, user) or call('EXISTS', prefix .. 'policy:' .. user, prefix .. 'xcom-spaces:' .. user) > 0
    or call('ZLEXCOUNT', index, '[' .. user .. ':', '(' .. user .. ';') > 0 then
  return { 'known' }
end
call('HSET', key, 'token', token, 'why', 'arrive', 'at', 0, 'source', source, 'passport', passport)
call('ZADD', prefix .. 'damaged', 'inf', user)
call('HSET', prefix .. 'damage', user, 'stands still, as it comes from another partition')
call('HSET', state_key, 'damaged', 1)
note_mover(user)
return { 'arriving', 0 }

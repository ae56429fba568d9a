#!lua flags=no-writes
-- What a task has yielded behind a position, and once that is all, how it ended.
-- KEYS[1]  state
-- Returns  {batches, each {position of its last chunk, delivery, chunks}, 1 there is more or 0, 1 it begins anew or 0,
--          result record or '', 1 it lives or 0}
-- Cost     O(size), which is bounded
--@include base
--@include moved
--@arguments
refuse_moved(user)
local MOST_BATCHES = 100
local key = chunks_key(user, id)
local newest = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
local last = newest and newest[1] or ''
-- A position behind all there is comes from an earlier task of this id.
local is_anew = newest and after ~= '' and not call('XRANGE', key, after, '+', 'COUNT', 1)[1]
local from = after ~= '' and not is_anew and '(' .. after or string.match(last, '^%d+') or '-'
local found, size, entry = {}, 0, nil
repeat
  entry = newest and call('XRANGE', key, from, '+', 'COUNT', 1)[1]
  if entry then
    found[#found + 1] = { entry[1], entry[2][2], entry[2][8] }
    size, from = size + #entry[2][8], '(' .. entry[1]
  end
until not entry or size >= most_bytes or #found == MOST_BATCHES
local is_more = entry and entry[1] ~= last
local record = not is_more and call('GET', result_key(user, id)) or ''
return { found, is_more and 1 or 0, is_anew and 1 or 0, record, call('EXISTS', body_key(user, id)) }

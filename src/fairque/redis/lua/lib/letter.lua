--@include base
--@include first_moment
--@include dead_kinds

-- A task is no dead letter any more. All is read before anything is written.
local function unlist_dead(user, id)
  local all, own = prefix .. 'lapsing', place_key('lapsing', user)
  local is_linked = call('ZSCORE', own, id)
  if call('ZREM', place_key('dead', user), id) == 1 then unlist_by_kind(user, id) end
  call('ZREM', prefix .. 'dead', user .. ':' .. id)
  if is_linked then take_moment(all, own, user, id) end
end

-- Whose backlog is full and drops: the first ones in line go, of the normal lane before the critical one. They end as
-- canceled, with a record that is kept for `ttl` ms.
--@include base
--@include state
--@include fair
--@include limits
--@include canceled

local function drop_oldest(user, excess, ttl)
  local dropped = {}
  for _, lane in ipairs({ 'normal', 'critical' }) do
    local popped = call('ZPOPMIN', place_key(lane, user), excess - #dropped)
    count(lane, -#popped / 2)
    for at = 1, #popped, 2 do dropped[#dropped + 1] = popped[at] end
  end
  for _, id in ipairs(dropped) do
    if limited then limited.drop(user, id) end
    end_canceled(user, id, 'dropped: the backlog of its user is full', ttl)
  end
  retire(user)
end

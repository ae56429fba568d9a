-- A queue whose `state` is lost stops here and says so: whether it has policies and limits, its clock and its totals are
-- gone. One that was never used has no settings either.
--@include base
--@include state

if not of_queue.arrival and call('EXISTS', prefix .. 'settings') == 1 then
  return redis.error_reply('LOSTSTATE the key "state" of this queue is lost, and nothing can be put in or served: run '
    .. '`fairque doctor --repair`, which begins it anew and counts')
end

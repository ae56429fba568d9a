#!lua flags=allow-oom
-- End tasks whose time to begin is over. Claims do so as well, but where all slots are taken there may be none.
-- KEYS[1]  state
-- Returns  1 when there are more, else 0
-- Cost     O(tasks log backlog), of 100 tasks at most
--@include base
--@include state
--@include expired
--@arguments
expire_due(dead_letter_ttl_ms)
pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
pass_room_on()
save_state()
return deadlines.due(1)[1] and 1 or 0

#!lua flags=no-writes
-- The keys of the values that the tasks of a user share, by expiry.
-- KEYS[1]  state
-- Returns  key, expiry in ms ...
-- Cost     O(log values + most)
--@include base
--@include xcom
--@arguments
refuse_moved(user)
-- Where the page before this one ended may have expired meanwhile.
if from_ms <= now then from_ms, skip = now + 1, 0 end
return call('ZRANGEBYSCORE', new_xcom().expiries(user, namespace), from_ms, '+inf', 'WITHSCORES', 'LIMIT', skip, most)

--@include base

-- Every place in which a user has tasks, but those that run.
local function places_of(user)
  return place_key('critical', user), place_key('normal', user), place_key('held', user), place_key('scheduled', user),
    place_key('deferred', user), place_key('dead', user), place_key('lapsing', user)
end

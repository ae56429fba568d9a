-- A user stands still while it is carried elsewhere (dump.lua, import.lua): what waits is in no line, what time would bring waits,
-- and who would change something of it is told so.
-- frozen:<u>  hash  token: whose it is; why: 'export' or 'move', which end by themselves when the key does, 'import' or 'arrive';
--                   at: how many records of an import are there; leaves_until: of an import that is carried elsewhere with its
--                   end, in ms: till then nothing of it changes; ahead: by how much its tag was ahead of the clock. Of one that
--                   arrives: source, where it comes from; passport: lib/passport.lua; n:<total>: what it adds to totals
-- Until then the user is in `damaged` as well, with which everybody leaves it alone: lib/damage.lua.
--@include base

local function frozen_key(user) return prefix .. 'frozen:' .. user end

local function is_frozen(user) return call('EXISTS', frozen_key(user)) == 1 end

local function refuse_frozen(user)
  if is_frozen(user) then error({ err = 'FROZEN ' .. user }, 0) end
end

-- What a user takes along to another partition beside its keys, as a msgpack map:
-- tag      its tag in the virtual time that partitions share, '' where it has none (lib/between.lua); of who is in a group,
--          which stands in a line of its own, by how much it was ahead of the clock of that
-- group    in which it had that, or ''
-- arrival  the last arrival here, in us: who comes later there is behind what it brings
-- seen     its place in `users`
-- epoch    the number of this move: it grows with each one of a user, whatever the clocks of two nodes say
-- recount  whether its bytes are to be counted anew where they have a limit, as they are not counted, or not to the end, here
-- Where it arrives, its field `passport` of frozen:<u> keeps it.
--@include base
--@include state
--@include fair
--@include weighing

local function offset_here() return tonumber(call('HGET', state_key, 'offset') or 0) end

-- Before it leaves its line. is_counted: what it has was put in here, so that its bytes were counted.
local function passport_of(user, is_counted)
  local u = nodes.user(user)
  nodes.reweight(u)
  local tag = nodes.is_ready(u) or nodes.cap_of(u) or lines.own_tag(u.up, u.member)
  local known = tonumber(call('HGET', user_key(user), 'epoch') or 0)
  if tag and u.up == root then tag = tag + offset_here() elseif tag then tag = math.max(0, tag - u.up.clock) end
  return cmsgpack.pack({
    tag = tag and string.format('%.17g', tag) or '',
    group = u.policy.group or '',
    arrival = string.format('%.0f', arrival),
    seen = call('ZSCORE', users_key, user) or now_text,
    epoch = string.format('%.0f', math.max(now_us, known + 1)),
    recount = (is_weighing or not is_counted or not new_bytes().limit(user)) and 1 or 0,
  })
end

-- At its end: it is where it was, and comes behind nobody who was behind it; who comes into another group has no place in that
-- yet, as anybody who changes to one. Its bytes were counted there, if they were.
local MOST_AHEAD_US = 60000000
local function present_passport(user, packed)
  local brought = cmsgpack.unpack(packed)
  local u = nodes.user(user)
  nodes.reweight(u)
  local tag = brought.group == (u.policy.group or '') and tonumber(brought.tag) or nil
  if tag and u.up == root then
    lines.keep(root, user, tag - offset_here())
  elseif tag then
    lines.keep(u.up, u.member, u.up.clock + math.min(tag, lines.HORIZON * u.up.mean))
  end
  arrival = math.max(arrival, math.min(tonumber(brought.arrival), now_us + MOST_AHEAD_US))
  call('ZADD', users_key, 'GT', brought.seen, user)
  call('HSET', user_key(user), 'epoch', brought.epoch)
  call('PEXPIRE', user_key(user), USER_TTL)
  if brought.recount == 1 or is_weighing or not new_bytes().limit(user) then return new_weighing().recount(user) end
  local used = prefix .. 'bytes:' .. user
  if call('EXISTS', used) == 1 then call('HSET', used, 'gen', call('HGET', state_key, 'byte_gen') or '0') end
end

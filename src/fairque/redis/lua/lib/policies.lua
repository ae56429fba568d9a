-- A policy is a msgpack map in `policy:<u>`; what it does not say comes from `policy:*`, and a group's own is in
-- `policy:@<path>`. A queue without policies is served without looking for any.
--@include base

-- Those of many, by who has one, read at once.
local policies_ahead = {}
local function read_policies_ahead(many)
  local keys = {}
  for at, whose in ipairs(many) do keys[at] = prefix .. 'policy:' .. whose end
  if not keys[1] then return end
  for at, packed in ipairs(call('MGET', unpack(keys))) do policies_ahead[many[at]] = packed or nil end
end

local function read_policy(whose)
  -- To be read for certain, as a key of another type is an error that MGET does not tell.
  local packed = policies_ahead[whose] or call('GET', prefix .. 'policy:' .. whose)
  return packed and cmsgpack.unpack(packed) or {}
end

-- One that is being swept is not without them yet.
local function forget_policies_if_none()
  local left = call('HMGET', state_key, 'policies', 'sweep')
  if left[1] == '0' and not left[2] then
    call('HDEL', state_key, 'policies')
    call('UNLINK', prefix .. 'reserved') -- by a default that was taken back
  end
end

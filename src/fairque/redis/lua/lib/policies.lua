-- A policy is a msgpack map in `policy:<u>`; what it does not say comes from `policy:*`, and a group's own is in
-- `policy:@<path>`. A queue without policies is served without looking for any.
--@include base

local function read_policy(whose)
  local packed = call('GET', prefix .. 'policy:' .. whose)
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

-- A call that is repeated because its reply was cut is answered as the first time. `nonce` names the call.
--@include base

local ANSWER_TTL = 60000

local function answered(nonce)
  local packed = call('GET', prefix .. 'answer:' .. nonce)
  return packed and cmsgpack.unpack(packed)
end

local function answer(nonce, value, ttl_ms)
  call('SET', prefix .. 'answer:' .. nonce, cmsgpack.pack(value), 'PX', ttl_ms or ANSWER_TTL)
  return value
end

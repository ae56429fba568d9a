-- What scripts read of the body of a task. A body that cannot be read belongs to somebody else.
--@include base

local LONGEST_HEAD = 600 -- of a body, with a name of 512 bytes

-- The name of a task, '' where the body cannot be read.
local function name_in(body)
  local ok, _, name = pcall(cmsgpack.unpack_one, body, 19)
  return ok and type(name) == 'string' and name or ''
end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

local function cost_of_task(user, id)
  local head = redis.pcall('GETRANGE', body_key(user, id), 0, 17)
  return type(head) == 'string' and cost_of(head) or 1
end

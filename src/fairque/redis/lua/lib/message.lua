-- What scripts read of the body of a task. A body that cannot be read belongs to somebody else.
--@include base

local LONGEST_HEAD = 2200 -- of a body, with a name of 512 bytes and two limit keys

-- The name of a task, '' where the body cannot be read; second: the name and the limit keys that it was put in with, if it
-- has any, each as {text, its template percent-encoded or nil, whether it is of each user}.
local function heading_in(body)
  local ok, _, heading = pcall(cmsgpack.unpack_one, body, 19)
  if ok and type(heading) == 'table' and type(heading[1]) == 'string' then return heading[1], heading end
  return ok and type(heading) == 'string' and heading or ''
end

local function name_in(body) return (heading_in(body)) end

-- The head of a body: version, nonce (8), cost (8), priority (1). A foreign body costs 1.
local function cost_of(body)
  if #body < 18 or string.byte(body) ~= 1 then return 1 end
  local cost = struct.unpack('>d', body, 10)
  if cost >= 0 and cost < math.huge then return cost end
  return 1
end

-- As far as it can be read.
local function head_of_task(user, id)
  local head = redis.pcall('GETRANGE', body_key(user, id), 0, 17)
  return type(head) == 'string' and head or ''
end

local function cost_of_task(user, id) return cost_of(head_of_task(user, id)) end

local function priority_of(head)
  local priority = string.byte(head, 18) or 3
  return priority >= 1 and priority <= 6 and priority or 3
end

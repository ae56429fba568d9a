-- A list that comes packed by itself, a msgpack array of arrays: what it has is unpacked one by one, each into locals, by
-- `--@unpacked`. A table of each would take as long as all that is done with it.

-- How many there are, and how many bytes stand before the first one.
local function list_in(packed)
  local head = string.byte(packed) or 144
  if head < 160 then return head - 144, 1 end
  if head == 220 then return struct.unpack('>I2', packed, 2), 3 end
  return struct.unpack('>I4', packed, 2), 5
end

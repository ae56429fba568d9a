-- Whether a claim would let somebody in whose time has come: a task is due, or a user that was parked may go on.
--@include base

local function is_anybody_due()
  for _, key in ipairs({ due_key, prefix .. 'parked' }) do
    if redis.pcall('ZCOUNT', key, '-inf', now) ~= 0 then return true end -- also where it is of another type
  end
  return false
end

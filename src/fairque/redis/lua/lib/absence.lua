-- The same as a question, which costs nothing where nobody is absent.
--@include base
--@include state
--@include absent

-- Once a user has left, what is still here of it is as if it were not.
local function is_absent(user)
  return has_damaged and is_frozen(user) or has_moved and moved_to(user) and true or false
end

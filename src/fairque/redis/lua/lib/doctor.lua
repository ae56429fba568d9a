-- The frame of a check: what is wrong with each item that a call names. An item is a list: which check, the user and the
-- id that it is about or '', then what the check needs. Each is looked at alone, so that an error in one, such as a key of
-- a wrong type, is told of that one. In a repair what is wrong is mended at once: nothing comes between look and mend.
--@include base
--@include state
--@include absence

local function new_doctor(repairs)
  local it, checks, found = { checks = {} }, nil, nil
  checks = it.checks

  -- `key` is without its prefix. `mend` puts it right and returns what it did, or nil when it could do nothing.
  function it.wrong(kind, key, detail, mend)
    local at = #found + 1
    found[at] = { kind, key, detail, '' }
    local how = repairs and mend and mend()
    if how then found[at][4] = how end
  end


  local function look(item)
    found = {}
    -- The lists of one that stands still are made anew when it goes on, and what is left of one that has moved is on its way out.
    if item[2] ~= '' and is_absent(item[2]) then return found end
    local ok, problem = pcall(checks[item[1]], unpack(item, 2))
    if save_lines then save_lines() end -- what is looked at next reads them
    if not ok then found[#found + 1] = { 'unreadable', item[1] .. ' ' .. item[2], text_of(problem), '' } end
    return found
  end

  function it.look_at(items)
    local answers = {}
    for at, item in ipairs(items) do answers[at] = look(item) end
    return answers
  end

  return it
end

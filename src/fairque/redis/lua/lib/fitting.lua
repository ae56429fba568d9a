-- What a task leaves whose user has no bytes left: no outcome is lost, only what is large in it. A result that does not fit
-- makes a failure of the kind 'quota'; of an error that does not fit, the kind and the name stay.
--@include base
--@include bytes

local function new_fitting()
  local LONGEST_NAME = 200
  local MISSING = 'not kept: its user has no bytes left (max_bytes)'

  -- Of message.Record, from its first fields: name, attempt, queued, started, run, worker.
  local function without_value(record, text)
    local first = { cmsgpack.unpack_limit(record, 6, 11) }
    local name, attempt, queued, started, run, worker = unpack(first, 2, 7)
    return string.sub(record, 1, 9) .. 'X\156' .. cmsgpack.pack(name, attempt, queued, started, run, worker, nil, true,
      'quota', 'QuotaExceeded', text, ''), '\151' .. cmsgpack.pack(attempt, now / 1000, 'quota', 'QuotaExceeded', text, '',
      worker)
  end

  -- Of message.Record and models.Attempt: the texts at these places go, the name of the class before them stays.
  local function without_text(packed, head, fields, type_name, message)
    local ok, found = pcall(cmsgpack.unpack, string.sub(packed, head + 1))
    if not ok or type(found) ~= 'table' then return packed end
    found[type_name] = string.sub(tostring(found[type_name]), 1, LONGEST_NAME)
    found[message], found[message + 1] = MISSING, ''
    return string.sub(packed, 1, head) .. string.char(144 + fields) .. cmsgpack.pack(unpack(found, 1, fields))
  end

  -- `own`: bytes that the task had, which are not in the count now. Returns the kind, record, error and XCom value to be
  -- kept, and whether they are others.
  return function(user, kind, record, error, pushed, own)
    if kind == 'finished' then
      local size = #record + #pushed
      if bytes.has_room(user, size) then return kind, record, error, pushed, false end
      local text = string.format('the result takes %d bytes, of max_bytes of its user %d are left', size,
        math.max(0, bytes.limit(user) - bytes.used(user)))
      record, error = without_value(record, text)
      return 'failed', record, error, '', true
    end
    if bytes.has_room(user, own + #record + #error) then return kind, record, error, pushed, false end
    if kind == 'failed' then record = without_text(record, 10, 12, 10, 11) end
    return kind, record, without_text(error, 0, 7, 4, 5), pushed, true
  end
end

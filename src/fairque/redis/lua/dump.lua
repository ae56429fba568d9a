#!lua flags=no-writes
-- What is in keys of a user that stands still, a page of each.
-- KEYS[1]  state
-- Returns  nil where it stands still no more, or by another's will; else per key, as far as they fit: {where the next page
--          begins, '' for the last; ms since the epoch when the key expires, -1: never, -2: it is gone; parts ...}. Parts are
--          those of records: import.lua
-- Cost     O(parts)
--@include base
--@include frozen
--@arguments
if call('HGET', frozen_key(user), 'token') ~= token then return false end

local COUNT, ENTRIES = 500, 8
--@once
local read = {}

function read.string(key)
  local value = call('GET', key)
  return '', value and { value } or {}
end

local function by_rank(command, with)
  return function(key, from)
    local first = tonumber(from ~= '' and from or 0)
    local page = call(command, key, first, first + COUNT - 1, with)
    local has_more = #page == COUNT * (with and 2 or 1)
    return has_more and string.format('%d', first + COUNT) or '', page
  end
end
read.zset = by_rank('ZRANGE', 'WITHSCORES')
function read.list(key, from)
  local first = tonumber(from ~= '' and from or 0)
  local page = call('LRANGE', key, first, first + COUNT - 1)
  return #page == COUNT and string.format('%d', first + COUNT) or '', page
end

local function by_cursor(command)
  return function(key, from)
    local page = call(command, key, from ~= '' and from or '0', 'COUNT', COUNT)
    return page[1] ~= '0' and page[1] or '', page[2]
  end
end
read.hash, read.set = by_cursor('HSCAN'), by_cursor('SSCAN')

-- Per entry: its id, how many words it has, the words.
function read.stream(key, from)
  local page, parts = call('XRANGE', key, from ~= '' and '(' .. from or '-', '+', 'COUNT', ENTRIES), {}
  for _, entry in ipairs(page) do
    parts[#parts + 1], parts[#parts + 2] = entry[1], string.format('%d', #entry[2])
    for _, word in ipairs(entry[2]) do parts[#parts + 1] = word end
  end
  return #page == ENTRIES and page[ENTRIES][1] or '', parts
end

-- Of deliveries: per one its id, its worker, how often it was delivered, its task.
local DELIVERIES = 200
function read.deliveries(key, from)
  local page, parts = call('XRANGE', key, from ~= '' and '(' .. from or '-', '+', 'COUNT', DELIVERIES), {}
  if not page[1] then return '', parts end
  local pending, held_by = redis.pcall('XPENDING', key, 'workers', page[1][1], page[#page][1], DELIVERIES), {}
  for _, each in ipairs(pending) do held_by[each[1]] = each end -- none where its group was lost
  for _, entry in ipairs(page) do
    local of, id = held_by[entry[1]], entry[2][2]
    local at = #parts
    parts[at + 1], parts[at + 2] = entry[1], of and of[2] or call('HGET', task_key(user, id), 'worker') or 'nobody'
    parts[at + 3], parts[at + 4] = of and string.format('%d', of[4]) or '1', id
  end
  return #page == DELIVERIES and page[DELIVERIES][1] or '', parts
end

local pages, size = {}, 0
for at, dumped in ipairs(keys) do
  --@fields DumpedKey dumped
  local key = prefix .. name
  local next_from, parts = read[kind](key, start)
  pages[at] = { next_from, call('PEXPIRETIME', key), unpack(parts) }
  for _, part in ipairs(parts) do size = size + #part end
  if size > most_bytes then break end
end
return pages

-- Dead letters by the kind of their error, 'error ValueError': the kind of the failure and the name of the class. Of a user, and of
-- the queue (`*`), so many kinds have lists of their own; letters of further ones are in none. A kind that has one keeps it
-- until its letters are gone, so that many kinds of one user push out none of another.
-- dead-kinds:<u>, dead-kinds:*     zset  kind → ms of its latest letter
-- dead-of:<u>:<k>                  zset  id → ms
-- dead-of:*:<k>                    zset  <u>:<id> → ms
-- These lists are beside the letters: where one is damaged, letters come and go without it, and `check` mends it.
--@include base
local MOST_KINDS_OF_USER, MOST_KINDS_OF_ALL = 20, 500
local LONGEST_KIND = 200
local KINDS_FORGOTTEN = 100
local softly = redis.pcall

local function kinds_key(whose) return prefix .. 'dead-kinds:' .. whose end
local function letters_name(whose, kind) return 'dead-of:' .. whose .. ':' .. kind end
local function letters_key(whose, kind) return prefix .. letters_name(whose, kind) end

-- Of an error, as models.Attempt has it; '' where it cannot be read. Cut between two characters.
local function kind_in(error_record)
  local is_read, _, _, _, failure, name = pcall(cmsgpack.unpack_limit, error_record, 4, 1)
  if not is_read or type(failure) ~= 'string' or type(name) ~= 'string' then return '' end
  local kind, last = failure .. ' ' .. name, LONGEST_KIND
  if #kind <= last then return kind end
  while last > 0 and string.byte(kind, last + 1) >= 128 and string.byte(kind, last + 1) < 192 do last = last - 1 end
  return string.sub(kind, 1, last)
end

-- Whether it has a list, or there is room for one.
local function has_list(whose, kind, most, ttl)
  local key = kinds_key(whose)
  if type(softly('ZSCORE', key, kind)) == 'string' then return true end
  if (tonumber(softly('ZCARD', key)) or most) < most then return true end
  softly('ZREMRANGEBYSCORE', key, '-inf', now - ttl)
  return (tonumber(softly('ZCARD', key)) or most) < most
end

local function put_under(whose, kind, member, at, most, ttl)
  if not has_list(whose, kind, most, ttl) then return false end
  local kinds, letters = kinds_key(whose), letters_key(whose, kind)
  softly('ZADD', kinds, 'GT', at, kind)
  softly('PEXPIRE', kinds, ttl)
  softly('ZADD', letters, at, member)
  softly('PEXPIRE', letters, ttl)
  local old = tonumber(softly('ZCOUNT', letters, '-inf', now - ttl)) or 0
  if old > 0 then softly('ZREMRANGEBYRANK', letters, 0, math.min(old, KINDS_FORGOTTEN) - 1) end
  return true
end

-- A task became a dead letter. Returns what its record keeps: the kind, or '' where that has no list. `dead_apart` of it says
-- that it is not among those of the queue.
local function list_by_kind(user, id, error_record, at, ttl)
  local kind = kind_in(error_record)
  if kind == '' or not put_under(user, kind, id, at, MOST_KINDS_OF_USER, ttl) then return '' end
  if not put_under('*', kind, user .. ':' .. id, at, MOST_KINDS_OF_ALL, ttl) then softly('HSET', task_key(user, id), 'dead_apart', 1) end
  return kind
end

local function take_from(whose, kind, member)
  local letters = letters_key(whose, kind)
  if softly('ZREM', letters, member) == 1 and softly('EXISTS', letters) == 0 then softly('ZREM', kinds_key(whose), kind) end
end

-- It is none any more. Where its record is gone, all kinds of its user are looked at.
local function unlist_by_kind(user, id)
  local kind = softly('HGET', task_key(user, id), 'dead_kind')
  local kinds = type(kind) == 'string' and { kind } or softly('ZRANGE', kinds_key(user), 0, -1)
  for _, each in ipairs(kinds) do
    if each ~= '' then
      take_from(user, each, id)
      take_from('*', each, user .. ':' .. id)
    end
  end
end

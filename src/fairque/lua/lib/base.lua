-- Every script has the queue's state hash as KEYS[1]; the other keys carry the same hash tag.
local call = redis.call
local prefix = string.sub(KEYS[1], 1, -6)
local state_key = KEYS[1]
local ready_key = prefix .. 'ready'
local due_key = prefix .. 'due'
local leases_key = prefix .. 'leases'
local users_key = prefix .. 'users'
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local now_text = string.format('%d', now) -- a number handed to a command is formatted each time anew

-- A user hash nobody touched for this long is forgotten (its policy is a key of its own and stays).
local USER_TTL = 604800000

local function task_key(user, id) return prefix .. 'task:' .. user .. ':' .. id end
local function body_key(user, id) return prefix .. 'body:' .. user .. ':' .. id end
local function result_key(user, id) return prefix .. 'result:' .. user .. ':' .. id end
local function errors_key(user, id) return prefix .. 'errors:' .. user .. ':' .. id end
local function needs_key(user, id) return prefix .. 'needs:' .. user .. ':' .. id end
local function feeds_key(user, id) return prefix .. 'feeds:' .. user .. ':' .. id end
local function lane_key(lane, user) return prefix .. lane .. ':' .. user end
local function stream_key(lane, user) return prefix .. lane .. '-stream:' .. user end

local function publish(user, id, event) call('PUBLISH', prefix .. 'done:' .. user .. ':' .. id, event) end

-- Totals of the queue, written once at the end of a script.
local counts = {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end
local tallies = {}
-- A task of the user ended, or is tried again: counted for the queue and for the user.
local function tally(user, field)
  local of_user = tallies[user] or {}
  of_user[field] = (of_user[field] or 0) + 1
  tallies[user] = of_user
  count(field, 1)
end

local function save_counts()
  for field, by in pairs(counts) do
    if by ~= 0 then call('HINCRBY', state_key, field, by) end
  end
  for user, fields in pairs(tallies) do
    local key = prefix .. 'user:' .. user
    for field, by in pairs(fields) do
      -- A fresh hash must expire; a busy one is given more time now and then.
      if call('HINCRBY', key, field, by) % 256 <= by then call('PEXPIRE', key, USER_TTL) end
    end
  end
end

#!lua flags=allow-oom
-- Cancel tasks of a user in one of the places where it has some: one bounded step through it.
-- KEYS[1]  state
-- Returns  {where the next step begins, '' at the end, how many were canceled or told to stop, ms before which tasks
--          must have been put in}
-- Cost     O(most (log backlog + dependents))
--@include base
--@include absent
--@include state
--@include alive
--@include once
--@include message
--@include depend
--@include cancel
--@arguments
local before = answered(nonce)
if before then return before end
refuse_absent(user)
local until_ms = before_ms > 0 and before_ms or now - older_ms
local canceled = 0

-- When it was put in: that is written down, or its score tells it.
local function came_at(id, body, score)
  local known = call('HMGET', task_key(user, id), 'enqueued', 'lane', 'score', 'came')
  if known[1] then return tonumber(known[1]) end
  if known[4] then return known[4] / 1000 end
  local lane, came = known[2] or where, tonumber(known[3] or score or 0)
  if lane ~= 'critical' then came = came + ((string.byte(body, 18) or 1) - 1) * priority_step_ms * 1000 end
  return came / 1000
end

local function matches(id, score)
  local body = redis.pcall('GETRANGE', body_key(user, id), 0, LONGEST_HEAD)
  if type(body) ~= 'string' then body = '' end
  return (name == '' or name_in(body) == name) and came_at(id, body, score) < until_ms
end

-- Returns whether it has left its place.
local function cancel(id, score)
  if not matches(id, score) or call('HEXISTS', task_key(user, id), 'canceling') == 1 then return false end
  local outcome = cancel_task(user, id, reason, dead_letter_ttl_ms)
  if outcome == 'done' or outcome == 'canceling' then canceled = canceled + 1 end
  return outcome == 'done'
end

-- The next step begins at a score, behind so many that stay there: others come and go meanwhile.
local function walk_sorted()
  local first, passed = string.match(start, '^(%S+) (%d+)$')
  first, passed = first or '-inf', tonumber(passed or 0)
  local page = call('ZRANGEBYSCORE', place_key(where, user), first, '+inf', 'WITHSCORES', 'LIMIT', passed, most)
  for at = 1, #page, 2 do
    local id, score = page[at], page[at + 1]
    if not cancel(id, score) then
      if score ~= first then first, passed = score, 0 end
      passed = passed + 1
    end
  end
  return #page == 2 * most and first .. ' ' .. passed or ''
end

local function walk_deferred()
  local page = call('SSCAN', place_key('deferred', user), start == '' and '0' or start, 'COUNT', most)
  for _, id in ipairs(page[2]) do cancel(id) end
  return page[1] == '0' and '' or page[1]
end

local function walk_running()
  local page = call('XRANGE', prefix .. where .. ':' .. user, start == '' and '-' or '(' .. start, '+', 'COUNT', most)
  for _, entry in ipairs(page) do cancel(entry[2][2]) end
  return #page == most and page[#page][1] or ''
end

local next_from
if where == 'deferred' then
  next_from = walk_deferred()
elseif string.find(where, '-stream', 1, true) then
  next_from = walk_running()
else
  next_from = walk_sorted()
end
pass_on_outcomes(priority_step_ms * 1000, dead_letter_ttl_ms)
pass_room_on()
save_state()
return answer(nonce, { next_from, canceled, until_ms })

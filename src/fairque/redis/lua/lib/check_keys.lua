-- A key by itself: its type, and whether it expires. `name` is without its prefix; `ttl_ms`: what it should have had.
--@include base
--@include bytes
--@include doctor

local DAMAGED_TTL = 604800000 -- what is set aside is kept for a week

local function set_aside(name)
  local aside = prefix .. 'damaged:' .. name
  call('RENAME', prefix .. name, aside)
  call('PEXPIRE', aside, DAMAGED_TTL)
  return 'set aside as damaged:' .. name
end

-- A time to live of 0 days is that of dead letters.
local function add_key_checks(doctor, dead_letter_ttl_ms)
  local wrong = doctor.wrong

  -- The message of a task is replaced by one that says so: its task fails with that reason when its turn comes.
  local function mend_type(user, name)
    local told = set_aside(name)
    if bytes and user ~= '' and not is_weighing and bytes.limit(user) then bytes.forget(user) end -- and counted anew
    if string.sub(name, 1, 5) == 'body:' then call('SET', prefix .. name, '\0not a string') end
    return told
  end

  function doctor.checks.key(user, _, name, kind, expires, ttl_ms)
    local key = prefix .. name
    local is = call('TYPE', key).ok
    if is == 'none' then return end
    if is ~= kind and kind ~= 'any' then
      return wrong('wrong-type', name, 'is a ' .. is .. ', not a ' .. kind, function() return mend_type(user, name) end)
    end
    local left = call('PTTL', key)
    if expires == 'yes' and left == -1 then
      wrong('no-expiry', name, 'stays for ever', function()
        local ms = ttl_ms > 0 and ttl_ms or dead_letter_ttl_ms
        call('PEXPIRE', key, ms)
        return 'expires in ' .. string.format('%d', ms / 1000) .. ' s'
      end)
    elseif expires == 'no' and left >= 0 then
      wrong('expires', name, 'vanishes in ' .. string.format('%d', left) .. ' ms', function()
        call('PERSIST', key)
        return 'stays'
      end)
    end
  end
end

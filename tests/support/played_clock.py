"""The clock of a game: all that a script can know of time is that of the game, also what Redis keeps by its own clock.

These are the time, times to live, and how long deliveries have been idle. A key whose time is over in the game is
removed before the next call; on the server's own clock it would live for longer than any game lasts.
"""

from __future__ import annotations

__all__ = ["SET_CLOCK", "played"]

SET_CLOCK = """
local prefix = string.sub(KEYS[1], 1, -6)
redis.call('HSET', prefix .. 'told', 'seconds', ARGV[1], 'us', ARGV[2])
local expiry, now = prefix .. 'told-expiry', ARGV[1] * 1000 + math.floor(ARGV[2] / 1000)
for _, key in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', '(' .. now)) do
  if redis.call('PTTL', key) >= 0 then redis.call('DEL', key) end -- else it was made again since, to stay
  redis.call('ZREM', expiry, key)
end
"""
"""A script: KEYS[1] is the state of the queue, ARGV are seconds and microseconds."""

_SHADOW = """
local redis = (function(server)
  local prefix = string.sub(KEYS[1], 1, -6)
  local expiry, idle = prefix .. 'told-expiry', prefix .. 'told-idle'
  local LONG_MS, MOST = 86400000, 10000
  local time = server.call('HMGET', prefix .. 'told', 'seconds', 'us')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local does = {}

  function does.TIME() return { time[1], time[2] } end

  function does.PEXPIREAT(run, _, key, at)
    if tonumber(at) <= now then return run('DEL', key) end
    local is_there = run('PEXPIRE', key, LONG_MS)
    if is_there == 1 then server.call('ZADD', expiry, at, key) end
    return is_there
  end

  function does.PEXPIRE(run, _, key, ms) return does.PEXPIREAT(run, _, key, now + ms) end

  function does.PEXPIRETIME(run, _, key)
    local left = run('PTTL', key)
    return left >= 0 and tonumber(server.call('ZSCORE', expiry, key)) or left
  end

  function does.PTTL(run, _, key)
    local at = does.PEXPIRETIME(run, _, key)
    return at >= 0 and at - now or at
  end

  function does.SET(run, _, ...)
    local words = { ... }
    for at, word in ipairs(words) do
      if at > 2 and word == 'PX' then
        server.call('ZADD', expiry, now + words[at + 1], words[1])
        words[at + 1] = LONG_MS
      end
    end
    return run('SET', unpack(words))
  end

  local function touch(stream, claimed)
    for _, id in ipairs(claimed) do server.call('HSET', idle, stream .. ' ' .. id, now) end
  end

  function does.XCLAIM(run, ...)
    local claimed = run(...)
    if not claimed.err then touch(select(2, ...), claimed) end
    return claimed
  end

  function does.XAUTOCLAIM(run, name, stream, group, worker, _, ...)
    local reply = run(name, stream, group, worker, 0, ...)
    if not reply.err then touch(stream, reply[2]) end
    return reply
  end

  function does.XPENDING(run, ...)
    local name, stream, group, word, least, from, to, most = ...
    if word ~= 'IDLE' then return run(...) end
    local all, found = run(name, stream, group, from, to, MOST), {}
    if all.err then return all end
    for _, entry in ipairs(all) do
      entry[3] = now - server.call('HGET', idle, stream .. ' ' .. entry[1])
      if entry[3] >= tonumber(least) and #found < tonumber(most) then found[#found + 1] = entry end
    end
    return found
  end

  local function by_this_clock(run)
    return function(name, ...)
      local act = does[name]
      if act then return act(run, name, ...) end
      return run(name, ...)
    end
  end
  return setmetatable({ call = by_this_clock(server.call), pcall = by_this_clock(server.pcall) }, { __index = server })
end)(redis)
"""


def played(source: bytes) -> bytes:
    """The same script, as it runs in a game."""
    head, rest = source.split(b"\n", 1)
    return head + _SHADOW.encode() + rest

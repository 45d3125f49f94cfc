"""How presence lies in Redis: the keys and the scripts that change them.

    callboard:session:<session id>           uid, with the session's TTL
    callboard:presence:sessions:{uid}        sorted set: session id, scored by its expiry
    callboard:presence:user:{uid}            hash: companies, heartbeat; of every session at:<id>, route:<id>, by:<id>
    callboard:presence:{online}:expiry       sorted set: uid, scored by the expiry of the user's last session
    callboard:presence:{online}:names        sorted set: uid, all with score 0, for pages in a stable order

The sorted set of a user's sessions is the truth; the rest is found, or mended, from it. Times are milliseconds by the
server's clock. Every script declares its keys, and those of one script share a slot.
"""

from __future__ import annotations

from typing import NamedTuple

RETAINED_S = 30 * 86_400
"""How long an offline user's authorized companies are remembered, so that a return cannot widen what they see."""

ONLINE_EXPIRY = "callboard:presence:{online}:expiry"
ONLINE_NAMES = "callboard:presence:{online}:names"


def session_key(session_id: str) -> str:
    return f"callboard:session:{session_id}"


class UserKeys(NamedTuple):
    """The two keys of a user, as KEYS[1] and KEYS[2] of the scripts below."""

    sessions: str
    record: str

    @classmethod
    def of(cls, uid: str) -> UserKeys:
        return cls(f"callboard:presence:sessions:{{{uid}}}", f"callboard:presence:user:{{{uid}}}")


_PRELUDE = f"""
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function forget(id)
  redis.call('HDEL', KEYS[2], 'at:' .. id, 'route:' .. id, 'by:' .. id)
  return redis.call('ZREM', KEYS[1], id)
end
local function purge(now)
  local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
  for _, id in ipairs(gone) do forget(id) end
  return #gone
end
local function offline_by(removed)
  if removed == 0 or redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
  redis.call('EXPIRE', KEYS[2], {RETAINED_S})
  return 1
end
local function left(now)
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  return math.max(0, (last[2] or now) - now)
end
"""

# ARGV: session id, TTL (ms), backend route or '', companies (JSON) or '', sessions a user may have, holder or ''.
# Returns: came online (0/1), companies changed (0/1).
ENTER = (
    _PRELUDE
    + """
local id, now = ARGV[1], now_ms()
purge(now)
local came = 1 - redis.call('EXISTS', KEYS[1])
redis.call('ZADD', KEYS[1], now + ARGV[2], id)
redis.call('HSETNX', KEYS[2], 'at:' .. id, now)
redis.call('HSET', KEYS[2], 'heartbeat', now)
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'route:' .. id, ARGV[3]) end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], 'by:' .. id, ARGV[6]) end
local changed = 0
if ARGV[4] ~= '' and redis.call('HGET', KEYS[2], 'companies') ~= ARGV[4] then
  redis.call('HSET', KEYS[2], 'companies', ARGV[4])
  changed = 1
end
redis.call('PERSIST', KEYS[2])
local surplus = redis.call('ZCARD', KEYS[1]) - ARGV[5]
if surplus > 0 then
  for _, oldest in ipairs(redis.call('ZRANGE', KEYS[1], 0, surplus)) do
    if oldest ~= id and surplus > 0 then surplus = surplus - forget(oldest) end
  end
end
return {came, changed}
"""
)

# ARGV: session id, holder or ''. Returns: was alive (0/1), the user is offline by this (0/1), or nil: another holds it.
LEAVE = (
    _PRELUDE
    + """
local score, now = redis.call('ZSCORE', KEYS[1], ARGV[1]), now_ms()
local by = redis.call('HGET', KEYS[2], 'by:' .. ARGV[1])
if ARGV[2] ~= '' and by and by ~= ARGV[2] then return nil end
local alive = 0
if score and tonumber(score) > now then alive = 1 end
local removed = purge(now) + forget(ARGV[1])
return {alive, offline_by(removed)}
"""
)

# ARGV: session id, TTL (ms). Returns 1, or 0 when the session is over: a heartbeat never revives it.
TOUCH = (
    _PRELUDE
    + """
local score, now = redis.call('ZSCORE', KEYS[1], ARGV[1]), now_ms()
if not score or tonumber(score) <= now then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], 'heartbeat', now)
return 1
"""
)

# Drops sessions that are over. Returns: the user is offline by this (0/1), what the last session has left (ms).
PURGE = _PRELUDE + "local now = now_ms() return {offline_by(purge(now)), left(now)}"

# Returns: session ids with their expiry, the record.
READ = (
    _PRELUDE
    + """
return {redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now_ms(), '+inf', 'WITHSCORES'), redis.call('HGETALL', KEYS[2])}
"""
)

# Returns: sessions alive, companies (JSON) or nil.
READ_ACCESS = (
    _PRELUDE
    + """
return {redis.call('ZCOUNT', KEYS[1], '(' .. now_ms(), '+inf'), redis.call('HGET', KEYS[2], 'companies')}
"""
)

# KEYS[1]: session key. ARGV: uid. Frees the key unless the session has moved to another user.
FREE_SESSION = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

# The index of online users. KEYS: expiry, names. ARGV: uid, what the last session has left (ms).
# Returns 1 when the user was not in it.
INDEX_ADD = (
    _PRELUDE
    + """
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return redis.call('ZADD', KEYS[1], 'GT', now_ms() + ARGV[2], ARGV[1])
"""
)

# ARGV: uid.
INDEX_REMOVE = "redis.call('ZREM', KEYS[2], ARGV[1]) return redis.call('ZREM', KEYS[1], ARGV[1])"

# ARGV: limit. Returns: number of users online, up to `limit` users whose last session is over.
INDEX_DUE = (
    _PRELUDE
    + """
local now = now_ms()
return {
  redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf'),
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1]),
}
"""
)

# ARGV: lower bound ('-' or '(uid'), limit. Returns: uid the next page starts after or '', users online.
INDEX_PAGE = (
    _PRELUDE
    + """
local names = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], '+', 'LIMIT', 0, ARGV[2])
local now, users = now_ms(), {}
for _, uid in ipairs(names) do
  local expiry = redis.call('ZSCORE', KEYS[1], uid)
  if expiry and tonumber(expiry) > now then users[#users + 1] = uid end
end
local next = ''
if #names == tonumber(ARGV[2]) then next = names[#names] end
return {next, users}
"""
)

CLAIM_SESSION = """
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] or ARGV[3] == '1' then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return owner
"""
"""KEYS: a session. ARGV: uid, TTL in ms, 1 to take it from another user. Returns who had it before, if anybody."""

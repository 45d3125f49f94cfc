"""The one lease primitive: owned, renewed, fenced.

A lease is a Redis hash: `owner`, `expires` (milliseconds, by the server's clock), `fence`, and `nudges`, how often
others have asked for its owner's attention, who is told at each renewal. While it is held it has
no Redis TTL, so that eviction (volatile-lru) cannot free it. A released lease, and a swept expired one, stays behind as
a tombstone with a Redis TTL that holds the fence alone. `callboard:leases` is how the sweep finds what nobody released:
a sorted set of the leases' keys, entered before a lease is taken, scored by when (ms) to look at it.

The fencing token grows with every new tenure: previous + 1, or the server's time in milliseconds if that is more. So it
also grows when Redis has lost the tombstone. Whoever receives work under two fences keeps the higher one's.

Every script declares its one key and is harmless to repeat with the same owner token: a lost reply is asked for again.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from redis.exceptions import NoScriptError

from callboard.connections import Connections, redis_errors

TOMBSTONE_S = 3_600
INDEX = "callboard:leases"
_SWEEP_BATCH = 200

LUA = """
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- the owner's lease has not expired
local function lease_holds(key, owner)
  local l = redis.call('HMGET', key, 'owner', 'expires')
  return l[1] == owner and tonumber(l[2]) > now_ms()
end

-- take, or keep, the lease: its fence and 1 when it was taken over from an owner that let it expire; or nil: another's
local function lease_take(key, owner, ttl_ms)
  local now = now_ms()
  local l = redis.call('HMGET', key, 'owner', 'expires', 'fence', 'taken_over')
  local running = l[1] and tonumber(l[2]) > now
  if running and l[1] ~= owner then return nil end
  local fence, taken_over = tonumber(l[3] or 0), tonumber(l[4] or 0)
  if not running then
    fence = math.max(fence + 1, now)
    taken_over = (l[1] and l[1] ~= owner) and 1 or 0
    redis.call('HDEL', key, 'nudges')
  end
  redis.call('HSET', key, 'owner', owner, 'expires', string.format('%.0f', now + ttl_ms),
             'fence', string.format('%.0f', fence), 'taken_over', taken_over)
  redis.call('PERSIST', key)
  return fence, taken_over
end

-- leave the tombstone
local function lease_bury(key, tombstone_ms)
  redis.call('HDEL', key, 'owner', 'expires', 'taken_over', 'nudges')
  redis.call('PEXPIRE', key, tombstone_ms)
end
"""

_IS_FREE = (
    LUA
    + """
local l = redis.call('HMGET', KEYS[1], 'owner', 'expires')
return (not l[1] or l[1] == ARGV[1] or tonumber(l[2]) <= now_ms()) and 1 or 0
"""
)
_ACQUIRE = LUA + "return {lease_take(KEYS[1], ARGV[1], ARGV[2])}"
_RENEW = (
    LUA
    + """
if not lease_holds(KEYS[1], ARGV[1]) then return -1 end
lease_take(KEYS[1], ARGV[1], ARGV[2])
return tonumber(redis.call('HGET', KEYS[1], 'nudges') or 0)
"""
)
_NUDGE = "if redis.call('HEXISTS', KEYS[1], 'owner') == 1 then redis.call('HINCRBY', KEYS[1], 'nudges', 1) end"
_RELEASE = LUA + "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then lease_bury(KEYS[1], ARGV[2]) end"
_OWNER = (
    LUA
    + """
local l = redis.call('HMGET', KEYS[1], 'owner', 'expires')
return l[1] and tonumber(l[2]) > now_ms() and l[1] or nil
"""
)
_SWEEP = (
    LUA
    + """
local expires = redis.call('HGET', KEYS[1], 'expires')
if not expires then return 'over' end
if tonumber(expires) > now_ms() then return 'held' end
lease_bury(KEYS[1], ARGV[1])
return 'buried'
"""
)

# KEYS[1]: the index. ARGV: a lease's key, when to look at it (ms from now).
_INDEX_ADD = LUA + "redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms() + ARGV[2]), ARGV[1])"

# ARGV: limit, when to look at them again (ms from now). Returns: that time, the leases' keys to look at now.
_INDEX_TAKE_DUE = (
    LUA
    + """
local now = now_ms()
local again = string.format('%.0f', now + ARGV[2])
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
for _, key in ipairs(due) do redis.call('ZADD', KEYS[1], again, key) end
return {again, due}
"""
)

# ARGV: the time that _INDEX_TAKE_DUE gave, the leases' keys to drop, unless one has been entered anew since.
_INDEX_DROP = """
for i = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
"""


class Leases:
    """Leases on Redis keys. Every method raises Unavailable when Redis cannot be reached."""

    def __init__(self, connections: Connections, *, tombstone_s: float = TOMBSTONE_S) -> None:
        self._connections = connections
        self._tombstone_ms = int(tombstone_s * 1000)

    async def acquire(self, key: str, owner: str, ttl_s: float) -> Lease | None:
        """The lease on `key` for `owner`, a token of this tenure alone; None while another owner's runs.

        Repeated with the same token it answers the same lease, its time starting anew.
        """
        if not await self._run(_IS_FREE, key, owner):
            return None
        # In the index first: the sweep then finds what a crash, or a reply that is lost, leaves behind.
        await self._run(_INDEX_ADD, INDEX, key, int(ttl_s * 1000))
        began = time.monotonic()
        answer = await self._run(_ACQUIRE, key, owner, int(ttl_s * 1000))
        if not answer:
            return None
        fence, taken_over = answer
        return Lease(self, key, owner, fence=int(fence), taken_over=bool(taken_over), ttl_s=ttl_s, renewed_at=began)

    async def owner(self, key: str) -> str | None:
        """The token of whose lease on `key` runs now, by Redis' clock; None when nobody's does."""
        owner: bytes | None = await self._run(_OWNER, key)
        return None if owner is None else owner.decode()

    async def nudge(self, key: str) -> None:
        """Have the owner of the lease on `key`, if there is one, find it `nudged` at its next renewal."""
        await self._run(_NUDGE, key)

    async def sweep(self, look_again_s: float = 1_800) -> int:
        """Bury the leases that expired and were neither released nor taken over; their number.

        Any replica may do it at any time: what one looks at, the others leave alone for `look_again_s` seconds. Costs
        three round trips for 200 leases.
        """
        buried = 0
        while True:
            again, due = await self._run(_INDEX_TAKE_DUE, INDEX, _SWEEP_BATCH, int(look_again_s * 1000))
            with redis_errors(self._connections):
                pipeline: Any = self._connections.commands.pipeline(transaction=False)
                for key in due:
                    pipeline.eval(_SWEEP, 1, key, self._tombstone_ms)
                states = await pipeline.execute() if due else []
            if over := [key for key, state in zip(due, states, strict=True) if state != b"held"]:
                await self._run(_INDEX_DROP, INDEX, again, *over)
            buried += states.count(b"buried")
            if len(due) < _SWEEP_BATCH:
                return buried

    async def _run(self, script: str, key: str | bytes, *args: str | bytes | int) -> Any:
        with redis_errors(self._connections):
            return await run_script(self._connections, script, key, *args)


class Lease:
    """A lease that was held when it was made. `fence` stays the same for the tenure."""

    def __init__(
        self, leases: Leases, key: str, owner: str, *, fence: int, taken_over: bool, ttl_s: float, renewed_at: float
    ) -> None:
        self.key = key
        self.owner = owner
        self.fence = fence
        self.taken_over = taken_over
        """The previous owner let it expire: it went silent instead of releasing it."""
        self.ttl_s = ttl_s
        self.nudged = False
        """Somebody has nudged it, and it was renewed since; whoever heeds it sets it back."""
        self._nudges = 0
        self._leases = leases
        self._renewed_at = renewed_at

    async def renew(self) -> bool:
        """Start its time anew. False: it expired, or is another's; it stays lost. Unavailable: not known."""
        began = time.monotonic()
        nudges = await self._leases._run(_RENEW, self.key, self.owner, int(self.ttl_s * 1000))
        if nudges < 0:
            self._renewed_at = float("-inf")
            return False
        if nudges != self._nudges:
            self._nudges, self.nudged = nudges, True
        self._renewed_at = began
        return True

    async def release(self) -> None:
        """Give it up for the next one to take at once. Nothing happens if it is another's by now."""
        self._renewed_at = float("-inf")
        await self._leases._run(_RELEASE, self.key, self.owner, self._leases._tombstone_ms)

    def is_firm(self) -> bool:
        """Whether to act on it: less than 2/3 of its time has passed since the last renewal began, by our own clock.

        A process that was paused for longer wakes up with a lease that is not firm, before another can have taken it.
        """
        return time.monotonic() - self._renewed_at < self.ttl_s * 2 / 3


async def run_script(connections: Connections, script: str, key: str | bytes, *args: str | bytes | int) -> Any:
    """Run a Lua script on one key by its digest, or whole where the server does not know it yet. Use in `redis_errors`.

    EVAL teaches the script to the very node that owns the key, which SCRIPT LOAD would not after a failover.
    """
    digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    try:
        return await connections.commands.evalsha(digest, 1, key, *args)
    except NoScriptError:
        return await connections.commands.eval(script, 1, key, *args)

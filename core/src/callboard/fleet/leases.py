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

import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from redis.exceptions import ResponseError

from callboard.connections import Connections, redis_errors
from callboard.errors import Unavailable
from callboard.fleet import scripts

TOMBSTONE_S = 3_600
INDEX = "callboard:leases"
_SWEEP_BATCH = 200
_NEVER = float("-inf")

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
  end
  -- First of all writes: without memory it is refused, but would not be after one that is not.
  redis.call('HSET', key, 'owner', owner, 'expires', string.format('%.0f', now + ttl_ms),
             'fence', string.format('%.0f', fence), 'taken_over', taken_over)
  if not running then redis.call('HDEL', key, 'nudges') end
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
_RELEASE = (
    LUA
    + """
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then return 1 end
if owner ~= ARGV[1] then return 0 end
lease_bury(KEYS[1], ARGV[2])
return 1
"""
)
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

# KEYS[1]: the index. ARGV: when to look at them (ms from now), leases' keys.
_INDEX_ADD = (
    LUA
    + """
local at = string.format('%.0f', now_ms() + ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], at, ARGV[i]) end
"""
)

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


Unknown: TypeAlias = Unavailable | ResponseError
"""What stands in the place of an answer: Redis cannot be reached, or refuses this one, whose key is no lease, say."""


class Leases:
    """Leases on Redis keys. Every method raises Unavailable when Redis cannot be reached.

    A key that is no lease costs the others nothing. Of one alone it is redis-py's ResponseError.
    """

    def __init__(self, connections: Connections, *, tombstone_s: float = TOMBSTONE_S) -> None:
        self._connections = connections
        self._tombstone_ms = int(tombstone_s * 1000)

    async def acquire(self, key: str, owner: str, ttl_s: float) -> Lease | None:
        """The lease on `key` for `owner`, a token of this tenure alone; None while another owner's runs.

        Repeated with the same token it answers the same lease, its time starting anew.
        """
        [answer] = await self.acquire_many([(key, owner)], ttl_s)
        if isinstance(answer, Unknown):
            raise answer
        return answer

    async def acquire_many(self, wanted: Sequence[tuple[str, str]], ttl_s: float) -> list[Lease | Unknown | None]:
        """`acquire` for pairs of key and owner, in their order, in three round trips; a few hundred at a time.

        Unavailable is raised, too, when no lease can be had at all.
        """
        ttl_ms = int(ttl_s * 1000)
        free = await self._run_many(_IS_FREE, wanted)
        found: list[Lease | Unknown | None] = [one if isinstance(one, Unknown) else None for one in free]
        places = [place for place, one in enumerate(free) if one == 1]
        if not places:
            return found
        # In the index first: the sweep then finds what a crash, or a reply that is lost, leaves behind.
        await self._run(_INDEX_ADD, INDEX, ttl_ms, *(wanted[place][0] for place in places))
        began = time.monotonic()
        answers = await self._run_many(_ACQUIRE, [(*wanted[place], ttl_ms) for place in places])
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, Unknown):
                found[place] = answer
            elif answer:
                (key, owner), (fence, taken_over) = wanted[place], answer
                found[place] = Lease(
                    self, key, owner, fence=int(fence), taken_over=bool(taken_over), ttl_s=ttl_s, renewed_at=began
                )
        return found

    async def renew_many(self, held: Sequence[Lease]) -> list[bool | Unknown]:
        """`Lease.renew` for many, in their order, in one round trip; a few hundred at a time."""
        began = time.monotonic()
        answers = await self._run_many(_RENEW, [(one.key, one.owner, int(one.ttl_s * 1000)) for one in held])
        for lease, answer in zip(held, answers, strict=True):
            if not isinstance(answer, Unknown):
                lease._heard(answer, began)
        return [answer if isinstance(answer, Unknown) else answer >= 0 for answer in answers]

    async def release_many(self, held: Sequence[Lease]) -> list[bool | Unknown]:
        """`Lease.release` for many, in one round trip; a few hundred at a time. False: it was another's by then.

        True, too, where it is nobody's: Redis lost it, or had released it before. One whose answer is not known expires
        by itself.
        """
        for lease in held:
            lease._renewed_at = _NEVER
        answers = await self._run_many(_RELEASE, [(one.key, one.owner, self._tombstone_ms) for one in held])
        return [answer if isinstance(answer, Unknown) else answer == 1 for answer in answers]

    async def owner(self, key: str) -> str | None:
        """The token of whose lease on `key` runs now, by Redis' clock; None when nobody's does."""
        owner: bytes | None = await self._run(_OWNER, key)
        return None if owner is None else owner.decode()

    async def are_free(self, keys: Sequence[str]) -> list[bool]:
        """Whether nobody's lease runs on each of `keys` now, in one round trip; a few hundred at a time."""
        return [answer == 1 for answer in await self._run_all(_IS_FREE, [(key, "") for key in keys])]

    async def nudge(self, keys: Sequence[str]) -> None:
        """Have the owners of the leases on `keys`, where there are any, find them `nudged` at their next renewal.

        A few hundred at a time.
        """
        await self._run_all(_NUDGE, [(key,) for key in keys])

    async def sweep(self, look_again_s: float = 1_800) -> int:
        """Bury the leases that expired and were neither released nor taken over; their number.

        Any replica may do it at any time: what one looks at, the others leave alone for `look_again_s` seconds. Costs
        three round trips for 200 leases.
        """
        buried = 0
        while True:
            again, due = await self._run(_INDEX_TAKE_DUE, INDEX, _SWEEP_BATCH, int(look_again_s * 1000))
            states = await self._run_all(_SWEEP, [(key, self._tombstone_ms) for key in due])
            if over := [key for key, state in zip(due, states, strict=True) if state != b"held"]:
                await self._run(_INDEX_DROP, INDEX, again, *over)
            buried += states.count(b"buried")
            if len(due) < _SWEEP_BATCH:
                return buried

    async def _run(self, script: str, key: str | bytes, *args: str | bytes | int) -> Any:
        with redis_errors(self._connections):
            return await scripts.run(self._connections, script, (key,), *args)

    async def _run_many(self, script: str, calls: Sequence[tuple[str | bytes, *tuple[str | int, ...]]]) -> list[Any]:
        """Each of `calls` is a key and its arguments. An answer that is not known is an Unknown."""
        by_key: list[scripts.Call] = [((key,), args) for key, *args in calls]
        return await scripts.run_many(self._connections, script, by_key, defects=True)

    async def _run_all(self, script: str, calls: Sequence[tuple[str | bytes, *tuple[str | int, ...]]]) -> list[Any]:
        """`_run_many` that raises Unavailable."""
        answers = await self._run_many(script, calls)
        for answer in answers:
            if isinstance(answer, Unavailable):
                raise answer
        return answers


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
        [held] = await self._leases.renew_many([self])
        if isinstance(held, Unknown):
            raise held
        return held

    def _heard(self, nudges: int, asked_at: float) -> None:
        """Redis has answered to a renewal: how often it was nudged so far, negative when it is lost."""
        if nudges < 0 or self._renewed_at == _NEVER:  # one that was lost or released meanwhile stays so
            self._renewed_at = _NEVER
            return
        self._renewed_at = asked_at
        if nudges != self._nudges:
            self._nudges, self.nudged = nudges, True

    async def release(self) -> None:
        """Give it up for the next one to take at once. Nothing happens if it is another's by now."""
        [answer] = await self._leases.release_many([self])
        if isinstance(answer, Unknown):
            raise answer

    def is_firm(self) -> bool:
        """Whether to act on it: less than 2/3 of its time has passed since the last renewal began, by our own clock.

        A process that was paused for longer wakes up with a lease that is not firm, before another can have taken it.
        """
        return time.monotonic() - self._renewed_at < self.ttl_s * 2 / 3

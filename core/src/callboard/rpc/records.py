"""The records of keyed calls in Redis: what one step does to one record, and nothing about waiting or retrying.

A record is a Redis hash, a lease while the call runs and an answer afterwards:

    owner, expires, fence   the lease; no Redis TTL, so that eviction cannot free it
    fingerprint             SHA-256 of the arguments: the same key with others is refused
    answer                  the stored reply, once there is one; from then on the record has a Redis TTL
    finisher                who stored it; nobody where a dead owner's outcome was told as unknown

What one caller was told, every other one is told: an owner that wakes up after its lease reads the answer there instead
of writing its own. Only "unknown" gives way, to an answer that a caller has already had while Redis was away. A record
that Redis lost in the middle of a call is made anew by its owner.

`callboard:idem-running` indexes the records that may be running, by the time their lease is worth a look: the sweep
finds there what dead owners left. Every script may be repeated with the same owner: a lost reply is asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from redis.asyncio import RedisCluster
from redis.exceptions import NoPermissionError

from callboard.connections import Connections, redis_errors
from callboard.errors import Unavailable
from callboard.fleet import leases, scripts

Claimed = Literal["claimed", "running", "done", "reused", "unknown"]
Renewed = Literal["lost", "held", "restored"]
_RENEWED: tuple[Renewed, ...] = ("lost", "held", "restored")
_PREFIX = "callboard:idem:"
_RUNNING = "callboard:idem-running"

# KEYS[1] record; ARGV owner, lease TTL ms, fingerprint, retry_safe 0|1, record TTL ms, what is told of a dead owner
_CLAIM = (
    leases.LUA
    + """
local r = redis.call('HMGET', KEYS[1], 'fingerprint', 'answer', 'owner', 'expires')
if r[1] and r[1] ~= ARGV[3] then return {'reused'} end
if r[2] then return {'done', r[2]} end
if r[3] and r[3] ~= ARGV[1] then
  if tonumber(r[4]) > now_ms() then return {'running'} end
  if ARGV[4] == '0' then
    redis.call('HSET', KEYS[1], 'answer', ARGV[6])
    redis.call('HDEL', KEYS[1], 'owner', 'expires')
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return {'unknown'}
  end
end
lease_take(KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[3])
return {'claimed'}
"""
)

# KEYS[1] record; ARGV owner, answer, record TTL ms, fingerprint, told 0|1. Stored, now or before by this owner;
# restored where there was no record; or what stands there instead: another's answer or run, or another call.
_FINISH = (
    leases.LUA
    + """
local r = redis.call('HMGET', KEYS[1], 'finisher', 'fingerprint', 'answer', 'owner', 'expires')
if r[1] == ARGV[1] then return {'stored'} end
if r[2] and r[2] ~= ARGV[4] then return {'reused'} end
if r[3] and (r[1] or ARGV[5] == '0') then return {'done', r[3]} end
if r[4] and r[4] ~= ARGV[1] and tonumber(r[5]) > now_ms() then return {'running'} end
redis.call('HSET', KEYS[1], 'answer', ARGV[2], 'finisher', ARGV[1], 'fingerprint', ARGV[4])
redis.call('HDEL', KEYS[1], 'owner', 'expires')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {r[2] and 'stored' or 'restored'}
"""
)

# KEYS[1] record; ARGV owner. The call never began: a retry starts afresh.
_FORGET = "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

# KEYS[1] record; ARGV owner, lease TTL ms, fingerprint, began 0|1. A lease that Redis lost is taken anew once the
# method has begun; before that it may be gone because the call was given up.
_RENEW = (
    leases.LUA
    + """
local r = redis.call('HMGET', KEYS[1], 'owner', 'answer')
if r[2] or (r[1] or ARGV[4] == '0') and r[1] ~= ARGV[1] then return 0 end
lease_take(KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[3])
return r[1] and 1 or 2
"""
)

# KEYS[1] record; ARGV record TTL ms. Gives the record of a dead owner a Redis TTL; 1: nothing more to watch
_SETTLE = (
    leases.LUA
    + """
local r = redis.call('HMGET', KEYS[1], 'answer', 'owner', 'expires')
if r[1] or not r[2] then return 1 end
if tonumber(r[3]) > now_ms() then return 0 end
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1
"""
)


# KEYS[1] the index; ARGV a time, records to drop, unless one has been entered anew since
_DROP = """
for i = 2, #ARGV do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at and tonumber(at) <= tonumber(ARGV[1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
"""


@dataclass(slots=True, eq=False)
class Claim:
    """This replica runs the call; `owner`, made for this claim alone, proves it."""

    record: str
    owner: str
    fingerprint: str
    renewed_at: float = 0.0
    began: bool = False
    """The method runs, or did: its outcome counts even where Redis has lost the record."""


class Ended(NamedTuple):
    """How a claim ended: `stored` (`restored`: Redis had lost the record) or `released`; or what stands there instead,
    `done` with its answer."""

    outcome: Literal["stored", "restored", "released", "running", "done", "reused", "lost"]
    answer: bytes | None = None


class Records:
    """Every method raises Unavailable when Redis cannot serve."""

    def __init__(
        self, connections: Connections, *, lease_ttl_s: float, record_ttl_s: float, unknown_answer: bytes
    ) -> None:
        """`unknown_answer` is stored, once it is told, where an owner died in the middle."""
        self._connections = connections
        self._lease_ttl_s = lease_ttl_s
        self._lease_ms = int(lease_ttl_s * 1000)
        self._record_ms = int(record_ttl_s * 1000)
        self._unknown_answer = unknown_answer

    async def claim(self, claim: Claim, *, retry_safe: bool) -> tuple[Claimed, bytes | None]:
        """Take the lease where there is none; the stored answer comes with `done`."""
        args = (claim.fingerprint, int(retry_safe), self._record_ms, self._unknown_answer)
        # The index comes first: a record that is claimed but not in it would never be swept.
        indexed, answer = await scripts.run_many(
            self._connections, _CLAIM, [self._call(claim, self._lease_ms, *args)], ahead=[self._index(claim)]
        )
        if isinstance(answer, Unavailable):
            raise answer
        outcome, stored = _read(answer)
        if outcome == "claimed" and isinstance(indexed, Unavailable):
            raise indexed
        return outcome, stored

    async def finish(self, claim: Claim, answer: bytes, *, told: bool = False) -> Ended:
        """Store the answer, unless another stands there already. `told`: a caller has it, so it is known."""
        keys, args = self._call(claim, answer, self._record_ms, claim.fingerprint, int(told))
        with redis_errors(self._connections):
            ended = Ended(*_read(await scripts.run(self._connections, _FINISH, keys, *args)))
            if ended.outcome in ("stored", "restored"):
                await self._connections.commands.zrem(_RUNNING, claim.record)
        return ended

    async def forget(self, claim: Claim) -> Ended:
        """Remove the record, unless the lease is not this claim's. In the index it stays: the next one may be there."""
        keys, args = self._call(claim)
        with redis_errors(self._connections):
            return Ended("released" if await scripts.run(self._connections, _FORGET, keys, *args) else "lost")

    async def renew(self, held: Sequence[Claim]) -> list[Renewed | Unavailable]:
        """Renew these leases: `lost` is one that another has, or has ended; Unavailable where that is not known."""
        calls = [self._call(claim, self._lease_ms, claim.fingerprint, int(claim.began)) for claim in held]
        indexed, *answers = await scripts.run_many(self._connections, _RENEW, calls, ahead=[self._index(*held)])
        if isinstance(indexed, Unavailable):
            raise indexed
        return [answer if isinstance(answer, Unavailable) else _RENEWED[answer] for answer in answers]

    async def sweep(self, batch: int = 200) -> int:
        """Give what dead owners left a Redis TTL, and take what has ended out of the index; how many left it."""
        commands = self._connections.commands
        swept = 0
        while True:
            now = f"{time.time():.3f}"
            with redis_errors(self._connections):
                overdue: Any = await commands.zrangebyscore(_RUNNING, "-inf", now, start=0, num=batch)
            calls: list[scripts.Call] = [((_PREFIX + record.decode(),), (self._record_ms,)) for record in overdue]
            answers = await scripts.run_all(self._connections, _SETTLE, calls)
            if settled := [record for record, over in zip(overdue, answers, strict=True) if over]:
                with redis_errors(self._connections):
                    await scripts.run(self._connections, _DROP, (_RUNNING,), now, *settled)
            swept += len(settled)
            if len(settled) < batch:
                return swept

    async def evicted_keys(self) -> int | None:
        """How many keys, of any kind, Redis has evicted since its nodes started; None when INFO is not allowed."""
        commands: Any = self._connections.commands
        where = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(commands, RedisCluster) else {}
        with redis_errors(self._connections):
            try:
                stats = await commands.info("stats", **where)
            except NoPermissionError:
                return None
        of_nodes = [stats] if "evicted_keys" in stats else stats.values()  # by node, where there are several
        return sum(int(of_node["evicted_keys"]) for of_node in of_nodes)

    def _call(self, claim: Claim, *args: scripts.Argument) -> scripts.Call:
        return (_PREFIX + claim.record,), (claim.owner, *args)

    def _index(self, *claims: Claim) -> scripts.Command:
        look_at = time.time() + self._lease_ttl_s
        return ("ZADD", _RUNNING, *(part for claim in claims for part in (f"{look_at:.3f}", claim.record)))


def _read(answer: Sequence[bytes]) -> tuple[Any, bytes | None]:
    outcome, *stored = answer
    return outcome.decode(), stored[0] if stored else None

"""The records of keyed calls in Redis: what one step does to one record, and nothing about waiting or retrying.

A record is a Redis hash, a lease while the call runs and an answer afterwards:

    owner, expires, fence   the lease; no Redis TTL, so that eviction cannot free it
    fingerprint             SHA-256 of the arguments: the same key with others is refused
    answer                  the stored reply, once there is one; from then on the record has a Redis TTL

`callboard:idem-running` indexes the records that may be running, by the time their lease is worth a look: the sweep
finds there what dead owners left. Every script may be repeated with the same owner: a lost reply is asked for again.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from callboard.connections import Connections, redis_errors
from callboard.fleet import leases

Outcome = Literal["claimed", "running", "done", "reused", "unknown"]
_PREFIX = "callboard:idem:"
_RUNNING = "callboard:idem-running"

# KEYS[1] record; ARGV owner, lease TTL ms, fingerprint, retry_safe 0|1, record TTL ms
_CLAIM = (
    leases.LUA
    + """
local r = redis.call('HMGET', KEYS[1], 'fingerprint', 'answer', 'owner', 'expires')
if r[1] and r[1] ~= ARGV[3] then return {'reused'} end
if r[2] then return {'done', r[2]} end
if r[3] and r[3] ~= ARGV[1] then
  if tonumber(r[4]) > now_ms() then return {'running'} end
  if ARGV[4] == '0' then
    if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
    return {'unknown'}
  end
end
lease_take(KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[3])
return {'claimed'}
"""
)

# KEYS[1] record; ARGV owner, answer, record TTL ms. 1: stored, now or before by this owner; 0: not the owner's
_FINISH = """
local r = redis.call('HMGET', KEYS[1], 'owner', 'finisher')
if r[2] == ARGV[1] then return 1 end
if r[1] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'answer', ARGV[2], 'finisher', ARGV[1])
redis.call('HDEL', KEYS[1], 'owner', 'expires')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS[1] record; ARGV owner. The call never began: a retry starts afresh.
_FORGET = "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

# KEYS[1] record; ARGV owner, lease TTL ms
_RENEW = (
    leases.LUA
    + """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
lease_take(KEYS[1], ARGV[1], ARGV[2])
return 1
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


class Records:
    """Every method raises Unavailable when Redis cannot serve."""

    def __init__(self, connections: Connections, *, lease_ttl_s: float, record_ttl_s: float) -> None:
        self._connections = connections
        self._lease_ttl_s = lease_ttl_s
        self._lease_ms = int(lease_ttl_s * 1000)
        self._record_ms = int(record_ttl_s * 1000)

    async def claim(
        self, record: str, owner: str, fingerprint: str, *, retry_safe: bool
    ) -> tuple[Outcome, bytes | None]:
        """Take the lease for `owner` where there is none; the stored answer comes with `done`."""
        with redis_errors(self._connections):
            pipe = self._connections.commands.pipeline(transaction=False)
            # The index comes first: a record that is claimed but not in it would never be swept.
            self._index(pipe, record)
            pipe.eval(_CLAIM, 1, _PREFIX + record, owner, self._lease_ms, fingerprint, int(retry_safe), self._record_ms)
            _, (outcome, *answer) = await pipe.execute()
        return outcome.decode(), answer[0] if answer else None

    async def finish(self, record: str, owner: str, answer: bytes) -> bool:
        """Store the answer; False when the lease is not this owner's any more."""
        return await self._end(record, _FINISH, owner, answer, self._record_ms)

    async def forget(self, record: str, owner: str) -> bool:
        """Remove the record; False when the lease is not this owner's."""
        return await self._end(record, _FORGET, owner)

    async def _end(self, record: str, script: str, *args: Any) -> bool:
        with redis_errors(self._connections):
            if not await self._connections.commands.eval(script, 1, _PREFIX + record, *args):
                return False
            await self._connections.commands.zrem(_RUNNING, record)
        return True

    async def renew(self, held: list[tuple[str, str]]) -> list[bool]:
        """Renew these leases (record, owner): whether each is still its owner's."""
        with redis_errors(self._connections):
            pipe = self._connections.commands.pipeline(transaction=False)
            for record, owner in held:
                self._index(pipe, record)
                pipe.eval(_RENEW, 1, _PREFIX + record, owner, self._lease_ms)
            return [bool(renewed) for renewed in (await pipe.execute())[1::2]]

    async def sweep(self, batch: int = 200) -> int:
        """Give what dead owners left a Redis TTL, and take what has ended out of the index; how many left it."""
        commands = self._connections.commands
        swept = 0
        with redis_errors(self._connections):
            while True:
                overdue: Any = await commands.zrangebyscore(_RUNNING, "-inf", time.time(), start=0, num=batch)
                if not overdue:
                    return swept
                pipe = commands.pipeline(transaction=False)
                for record in overdue:
                    pipe.eval(_SETTLE, 1, _PREFIX + record.decode(), self._record_ms)
                settled = [r for r, done in zip(overdue, await pipe.execute(), strict=True) if done]
                if settled:
                    await commands.zrem(_RUNNING, *settled)
                swept += len(settled)
                if len(settled) < batch:
                    return swept

    def _index(self, pipe: Any, record: str) -> None:
        pipe.zadd(_RUNNING, {record: time.time() + self._lease_ttl_s})

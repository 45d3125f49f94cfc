"""The jobs a user has on screen, known to every replica: one Redis set per user.

The set lives as long as somebody tends it: `watch_job` and the running listener's look at it push its end back. When
the user leaves, their listener stops, and the set goes `LIFETIME_S` later.

A set that was emptied is not one that was lost: it keeps the member `_KEPT`, which names no job. So the listener that
finds no set at all knows that Redis lost its data, and writes back what this replica saw within `LIFETIME_S`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from callboard.connections import Connections, redis_errors
from callboard.errors import FailedPrecondition

MAX_WATCHED = 100
LIFETIME_S = 120

_KEPT = ""

_ADD = """
local known = redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1
local others = redis.call('SCARD', KEYS[1]) - redis.call('SISMEMBER', KEYS[1], '')
if not known and others >= tonumber(ARGV[2]) then return 0 end
redis.call('SADD', KEYS[1], ARGV[1], '')
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
_REMOVE = """
redis.call('SADD', KEYS[1], '')
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
_TEND = """
if #ARGV > 1 and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SADD', KEYS[1], '', unpack(ARGV, 2))
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('SMEMBERS', KEYS[1])
"""


class WatchedJobs:
    """Every method raises Unavailable without Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._seen: dict[str, tuple[float, frozenset[str]]] = {}  # by uid, the one tended last at the end

    async def add(self, uid: str, job_id: str) -> None:
        """Safe to repeat. FailedPrecondition beyond `MAX_WATCHED` jobs."""
        with redis_errors(self._connections):
            added = await self._connections.commands.eval(_ADD, 1, _key(uid), job_id, MAX_WATCHED, LIFETIME_S)
        if not added:
            raise FailedPrecondition(f"a user watches at most {MAX_WATCHED} jobs: unwatch one first")

    async def remove(self, uid: str, job_id: str) -> None:
        """Safe to repeat."""
        with redis_errors(self._connections):
            await self._connections.commands.eval(_REMOVE, 1, _key(uid), job_id, LIFETIME_S)

    async def get(self, uid: str) -> frozenset[str]:
        with redis_errors(self._connections):
            return _names(await self._connections.commands.smembers(_key(uid)))

    async def tend(self, uid: str) -> frozenset[str]:
        """What `get` returns; and the set lives on for `LIFETIME_S` from now, or again when Redis lost it."""
        now = time.monotonic()
        while self._seen and (oldest := next(iter(self._seen.items())))[1][0] < now - LIFETIME_S:
            del self._seen[oldest[0]]
        _, seen = self._seen.get(uid, (now, frozenset()))
        with redis_errors(self._connections):
            watched = _names(await self._connections.commands.eval(_TEND, 1, _key(uid), LIFETIME_S, *seen))
        self._seen.pop(uid, None)
        if watched:
            self._seen[uid] = (now, watched)
        return watched


def _key(uid: str) -> str:
    return f"callboard:workflow:{{{uid}}}:watched"


def _names(members: Iterable[bytes | str]) -> frozenset[str]:
    return frozenset(name.decode() if isinstance(name, bytes) else name for name in members) - {_KEPT}

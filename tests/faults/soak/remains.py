"""What is in Redis when everybody has left, and should not be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

# What ends with its user, or with the call: nothing of it may stay, whatever TTL it has.
_OF_USERS = ("callboard:session:", "callboard:presence:sessions:", "callboard:presence:{online}:")
_LEASES = "callboard:lease:"
_RUNNING = "callboard:idem-running"
# The index of leases is swept once an hour, and names what has ended meanwhile.
_MAY_STAY = ("callboard:leases",)


async def remains(client: Any) -> AsyncIterator[tuple[str, str]]:
    """Keys, and what is wrong with each; `client` decodes."""
    async for key in client.scan_iter(count=1_000):
        if key.startswith(_OF_USERS):
            yield key, "of a user, and all have left"
        elif key == _RUNNING:
            yield key, f"{await client.zcard(key)} calls count as running"
        elif key.startswith(_LEASES) and await client.hexists(key, "owner"):
            yield key, "a lease that somebody holds"
        elif key not in _MAY_STAY and await client.ttl(key) == -1:
            yield key, "stays for ever"


async def is_settled(client: Any) -> bool:
    """Whether nothing of users and of running calls is left, while the replicas are there."""
    ended = (*_OF_USERS, _RUNNING)
    async for key in client.scan_iter(count=1_000):
        if key.startswith(ended) or (key.startswith(_LEASES) and await client.hexists(key, "owner")):
            return False
    return True

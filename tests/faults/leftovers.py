"""What replicas have left behind in Redis."""

from __future__ import annotations

import re
from typing import Any

from faults.fleet import Address
from redis.asyncio import Redis

_INDEXES = {"callboard:leases", "callboard:idem-running"}
"""Entries end when the sweep looks at them; they own nothing."""


async def held_by(server: Address, replica: str) -> list[str]:
    """The keys that name this replica: its listeners' leases, and wherever else it is listed."""
    name = re.compile(rf"\b{replica}\b")
    return sorted(key for key, value in (await _all(server)).items() if name.search(str(value[1])))


async def claimed(server: Address) -> list[str]:
    """The keyed calls that run, or whose owner died: a lease and no answer."""
    found = await _all(server)
    return sorted(key for key, (_, value) in found.items() if key.startswith("callboard:idem:") and "owner" in value)


async def left(server: Address) -> list[str]:
    """The keys, with what they hold, that are more than a memory.

    These are sessions, users online, leases that are held, calls without an answer.

    What has a TTL and owns nothing may stay: what a user may see, a lease's fence, a stored answer.
    """
    return sorted(
        f"{key} {value}"[:200]
        for key, (ttl_ms, value) in (await _all(server)).items()
        if key not in _INDEXES and (ttl_ms < 0 or not isinstance(value, dict) or "owner" in value)
    )


async def sessions(server: Address) -> dict[str, int]:
    """How many sessions each user has that are not over."""
    async with Redis(host=server.host, port=server.port, decode_responses=True) as redis:
        seconds, microseconds = await redis.time()
        now_ms = seconds * 1_000 + microseconds // 1_000
        keys = [key async for key in redis.scan_iter("callboard:presence:sessions:*", count=1_000)]
        pipeline = redis.pipeline(transaction=False)
        for key in keys:
            pipeline.zcount(key, f"({now_ms}", "+inf")
        counts = await pipeline.execute()
    return {key.rpartition(":")[2].strip("{}"): count for key, count in zip(keys, counts, strict=True) if count}


async def _all(server: Address) -> dict[str, tuple[int, Any]]:
    """Every key: its TTL in ms, -1 for none, and its value. One that ends meanwhile is left out."""
    async with Redis(host=server.host, port=server.port, decode_responses=True) as redis:
        keys = [key async for key in redis.scan_iter(count=1_000)]
        pipeline = redis.pipeline(transaction=False)
        for key in keys:
            pipeline.type(key)
            pipeline.pttl(key)
        about = await pipeline.execute()
        readers: dict[str, Any] = {
            "string": pipeline.get, "hash": pipeline.hgetall, "set": pipeline.smembers, "none": pipeline.exists,
            "zset": lambda key: pipeline.zrange(key, 0, -1), "list": lambda key: pipeline.lrange(key, 0, -1),
        }  # fmt: skip
        for key, kind in zip(keys, about[::2], strict=True):
            readers[kind](key)
        values = await pipeline.execute()
    found = zip(keys, about[1::2], values, strict=True)
    return {key: (ttl_ms, value) for key, ttl_ms, value in found if ttl_ms != -2}

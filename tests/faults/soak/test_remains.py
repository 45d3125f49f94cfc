from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from faults.soak.remains import is_settled, remains
from redis.asyncio import Redis

from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio

LEASE = "callboard:lease:listener:ledger.numbers:{ann}"


@pytest.fixture
async def client(own_valkey: ValkeyServer) -> AsyncIterator[Any]:
    """With what may stay: answers, tombstones, what a user may see, and the index of leases."""
    async with Redis.from_url(own_valkey.url, decode_responses=True) as made:
        await made.hset("callboard:idem:1", mapping={"fingerprint": "f", "answer": "{}"})
        await made.hset(LEASE, "fence", "7")
        await made.hset("callboard:presence:user:{ann}", "companies", "[]")
        for key in ("callboard:idem:1", LEASE, "callboard:presence:user:{ann}"):
            await made.expire(key, 900)
        await made.zadd("callboard:leases", {LEASE: 1})
        yield made


async def test_what_may_stay_is_no_leak(client: Any) -> None:
    assert [found async for found in remains(client)] == []
    assert await is_settled(client)


@pytest.mark.parametrize(
    ("command", "key", "settled"),
    [
        (("SET", "callboard:session:1", "ann", "EX", "90"), "callboard:session:1", False),
        (("ZADD", "callboard:presence:sessions:{ann}", "1", "s"), "callboard:presence:sessions:{ann}", False),
        (("ZADD", "callboard:presence:{online}:names", "0", "ann"), "callboard:presence:{online}:names", False),
        (("ZADD", "callboard:idem-running", "1", "1"), "callboard:idem-running", False),
        (("HSET", LEASE, "owner", "r1"), LEASE, False),
        (("HSET", "callboard:idem:2", "owner", "r1"), "callboard:idem:2", True),
        (("SET", "callboard:new", "1"), "callboard:new", True),
    ],
)
async def test_anything_else_is(client: Any, command: tuple[str, ...], key: str, settled: bool) -> None:
    await client.execute_command(*command)
    assert [found async for found, _ in remains(client)] == [key]
    assert await is_settled(client) is settled

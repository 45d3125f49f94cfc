"""Row 28: garbage under our keys in Redis, a pickle included, is survived, and never loaded. Real replicas."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from faults.doors import ORIGIN, opened, ticket_for
from faults.fleet import Fleet, Replica
from faults.page import Page
from faults.test_leakage import PICKLE, records_of
from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

ENVIRON = {
    "LISTENERS_ALLOWED_ORIGINS": ORIGIN,
    "LISTENERS_HEARTBEAT_INTERVAL": "1",
    "LISTENERS_TTL_SECONDS": "5",
    "RPC_IDEMP_TTL": "900",
}
SECONDS = {"timeout_ms": 5_000}
Plant = Callable[[Any, str, bytes], Awaitable[Any]]


async def as_string(redis: Any, key: str, junk: bytes) -> None:
    await redis.set(key, junk)


async def as_hash(redis: Any, key: str, junk: bytes) -> None:
    fields = ("owner", "expires", "fence", "nudges", "fingerprint", "answer", "finisher", "companies", "heartbeat")
    await redis.hset(key, mapping=dict.fromkeys((*fields, "at:ann-1", junk), junk))


async def as_set(redis: Any, key: str, junk: bytes) -> None:
    await redis.sadd(key, junk, "ann", "ann-1")


async def as_sorted_set(redis: Any, key: str, junk: bytes) -> None:
    await redis.zadd(key, {junk: 1, "ann": -1, "{": 2**60})


async def as_list(redis: Any, key: str, junk: bytes) -> None:
    await redis.rpush(key, junk, "ann")


async def as_stream(redis: Any, key: str, junk: bytes) -> None:
    await redis.xadd(key, {"owner": junk})


PLANTS: list[Plant] = [as_string, as_hash, as_set, as_sorted_set, as_list, as_stream]


async def kept(redis: Any, key: str) -> tuple[str, Any]:
    kind = (await redis.type(key)).decode()
    if kind == "hash":
        return kind, await redis.hgetall(key)
    if kind == "zset":
        return kind, dict(await redis.zrange(key, 0, -1, withscores=True))
    return kind, await redis.get(key)


def kind_of(key: str) -> str:
    """A key without the names in it."""
    return re.sub(r"\{(ann|bob)\}|ann-1|[0-9a-f]{32,}", "…", key)


async def use(replica: Replica, session: str = "ann-1") -> Counter[str]:
    """All that Ann may do; every call is answered, whatever Redis holds: by codes."""
    codes: Counter[str] = Counter()
    register = {"user_id": "ann", "session_id": session, "authorized_companies_ids": ["acme"]}
    calls: list[tuple[str, dict[str, Any], str | None]] = [
        ("REGISTRY.register_user", register, None),
        ("REGISTRY.heartbeat", {"session_id": session}, None),
        ("REGISTRY.get_user", {"user_id": "ann"}, None),
        ("REGISTRY.list_sessions", {"user_id": "ann"}, None),
        ("REGISTRY.online_users", {}, None),
        ("REGISTRY.check_listener_status", {"user_id": "ann", "listener_type": "ledger.numbers"}, None),
        ("REGISTRY.sync", {"user_id": "ann"}, None),
        ("LEDGER.append", {"name": "ann"}, "key-1"),
        ("LEDGER.put", {"name": "ann", "value": 1}, "key-2"),
        ("LEDGER.notify", {"uid": "ann", "n": 1}, None),
    ]
    for method, kwargs, key in calls:
        reply = await replica.call(method, user="ann", key=key, **SECONDS, **kwargs)
        codes["OK" if reply["ok"] else reply["error"]["code"]] += 1
    try:
        async with asyncio.timeout(5):
            async with opened(replica, "ann", await ticket_for(replica, "ann"), f"&session_id={session}"):
                codes["socket"] += 1
    except (ConnectionClosed, TimeoutError) as error:
        codes[f"socket {type(error).__name__}"] += 1
    return codes


@pytest.mark.fault(row=28)
@pytest.mark.timeout(280)
async def test_garbage_under_our_keys_is_survived(own_valkey: ValkeyServer, tmp_path: Path, fault: Fault) -> None:
    mark = tmp_path / "mark"
    junks = [PICKLE.format(path=mark).encode(), b"{no JSON", b"\xff\xfe\x00", b"x" * 2**21, b""]
    async with (
        Fleet(own_valkey, count=2, environ=ENVIRON) as fleet,
        Redis(host=own_valkey.host, port=own_valkey.port) as redis,
        Page("bob", lambda: fleet.replicas[1].ws_url) as bob,
    ):
        one, _ = fleet.replicas
        pids = [replica.pid for replica in fleet.replicas]
        well = await use(one)
        assert set(well) == {"OK", "socket"}
        async with opened(one, "ann", await ticket_for(one, "ann"), "&session_id=ann-1"):
            kinds = {kind_of(key.decode()): key.decode() async for key in redis.scan_iter("callboard:*")}
            codes: Counter[str] = Counter()
            planted = 0
            for number, key in enumerate(kinds.values()):
                for offset, plant in enumerate(PLANTS):
                    junk = junks[(number + offset) % len(junks)]
                    await redis.delete(key)
                    await plant(redis, key, junk)
                    codes += await use(one)
                    planted += 1
                await redis.delete(key)
        async with asyncio.timeout(60):  # the garbage is gone: all is as before
            while set(await use(one, "ann-2")) != {"OK", "socket"}:
                await asyncio.sleep(0.1)
        async with opened(one, "ann", await ticket_for(one, "ann")), asyncio.timeout(60):
            while not (await one.call("REGISTRY.check_listener_status", "ann", "ledger.numbers"))["data"]["active"]:
                await asyncio.sleep(0.1)
        grown = await fleet.grow("bob")
        await bob.until(lambda page: page.number == grown)
        assert bob.breaches == []
        assert [replica.pid for replica in fleet.replicas] == pids
        assert all(replica.alive for replica in fleet.replicas)
        records = [record for replica in fleet.replicas for record in records_of(replica.log.read_text())]
        died = [record for record in records if record["event"] == "task_died"]
        executions = await fleet.executions("ann")
        fault.figure(
            kinds=len(kinds), planted=planted, loaded=int(mark.exists()), died=len(died), records=len(records),
            executions=executions, bob_reconnected=bob.connects - 1,
            **{f"said_{code}": count for code, count in codes.items()},
        )  # fmt: skip
    assert len(kinds) >= 8, kinds
    assert not mark.exists()
    # A listener that cannot even release its lease ends, and is told of; it was started again, as seen above.
    assert all(record["task"].startswith("listener ") for record in died)
    assert executions <= 4  # two calls, and what was forgotten when the record was taken away

"""The client against the embedded Realtime Database, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from callboard.errors import PermissionDenied, Unavailable
from callboard_firebase import (
    ChildChange,
    Firebase,
    FirebaseSettings,
    NodeBatch,
    NodeWatch,
    Query,
    RealtimeDatabase,
    RealtimeOptions,
)
from callboard_firebase.realtime import Address, EmulatorTokens
from callboard_local import RealtimeProcess

from .realtime_server import QUICK

pytestmark = pytest.mark.anyio

KEYS = ["0", "1", "2", "7", "a", "b"]


@asynccontextmanager
async def opened(
    server: RealtimeProcess, namespace: str = "demo", options: RealtimeOptions = QUICK
) -> AsyncIterator[RealtimeDatabase]:
    address = Address.parse(server.url_of(namespace), emulator_host=server.address)
    async with RealtimeDatabase(address, EmulatorTokens(), options) as database:
        yield database


@pytest.fixture
async def database(realtime_server: RealtimeProcess, realtime_namespace: str) -> AsyncIterator[RealtimeDatabase]:
    """An empty database."""
    async with opened(realtime_server, realtime_namespace) as database:
        yield database


async def take(batches: NodeWatch) -> NodeBatch:
    async with asyncio.timeout(20):
        return await anext(batches)


async def until(batches: NodeWatch, reached: Callable[[NodeBatch], bool]) -> list[ChildChange]:
    """All changes up to the first batch for which `reached` holds."""
    seen: list[ChildChange] = []
    while True:
        batch = await take(batches)
        seen += batch.changes
        if reached(batch):
            return seen


def changes(seen: tuple[ChildChange, ...] | list[ChildChange]) -> list[tuple[str, str, Any]]:
    return [(change.kind, change.key, change.value) for change in seen]


def follow(held: dict[str, Any], seen: list[ChildChange]) -> None:
    """What a consumer does with the changes."""
    for change in seen:
        if change.kind == "removed":
            del held[change.key]
        else:
            assert (change.key in held) is (change.kind == "modified")
            held[change.key] = change.value


# -- requests


async def test_what_is_written_is_read(database: RealtimeDatabase) -> None:
    assert await database.get("a") is None
    await database.set("a", {"b": [1, 2.5, True, "é\u2028"], "c": None})
    assert await database.get("a") == {"b": [1, 2.5, True, "é\u2028"]}
    await database.update("a", {"b/1": None, "d/e": {"f": 1}})
    assert await database.get("a") == {"b": [1, None, True, "é\u2028"], "d": {"e": {"f": 1}}}
    assert await database.get("a", shallow=True) == {"b": True, "d": True}
    await database.delete("a/b")
    await database.set("a/d", None)
    assert await database.get("") is None


async def test_keys_of_every_kind(database: RealtimeDatabase) -> None:
    key = "100%25 ? & é : ; @ + %2F"
    await database.set(f"x/{key}", 1)
    await database.update("x", {f"{key}-2/y": 2})
    assert await database.get("x") == {key: 1, f"{key}-2": {"y": 2}}
    async with database.watch("x") as batches:
        assert (await take(batches)).children == {key: 1, f"{key}-2": {"y": 2}}
        await database.set(f"x/{key}", 3)
        assert changes((await take(batches)).changes) == [("modified", key, 3)]


async def test_server_values(database: RealtimeDatabase) -> None:
    await database.set("n", {"at": {"$op": "server_timestamp"}, "count": {".sv": {"increment": 2}}})
    await database.update("n", {"count": {"$op": "increment", "by": 3}})
    found = await database.get("n")
    assert found["count"] == 5
    assert isinstance(found["at"], int)


async def test_pushed_children_are_in_order(database: RealtimeDatabase) -> None:
    names = [await database.push("list", number) for number in range(20)]
    found = await database.get("list")
    assert [found[name] for name in sorted(found)] == list(range(20))
    assert sorted(names) == names
    last = await database.get("list", Query(limit_to_last=2))
    assert last == {names[18]: 18, names[19]: 19}
    assert await database.get("list", Query(order_by="$value", start_at=3, end_at=4)) == {names[3]: 3, names[4]: 4}


async def test_children_are_found_by_their_own(database: RealtimeDatabase) -> None:
    await database.set("m", {"a": {"u": {"n": 1}}, "b": {"u": {"n": 2}}, "c": {"u": {"n": 2}}})
    assert await database.get("m", Query(order_by="u/n", equal_to=2)) == {"b": {"u": {"n": 2}}, "c": {"u": {"n": 2}}}
    assert await database.get("m", Query(order_by="u/n", limit_to_first=1)) == {"a": {"u": {"n": 1}}}


async def test_increments_at_once_are_all_counted(database: RealtimeDatabase) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(200):
            tasks.create_task(database.update("c", {"n": {".sv": {"increment": 1}}}))
    assert await database.get("c/n") == 200


async def test_a_large_tree_goes_there_and_back(database: RealtimeDatabase) -> None:
    large = {f"k{number}": {"text": "x" * 100, "n": number} for number in range(5_000)}
    await database.set("large", large)
    assert await database.get("large") == large
    async with database.watch("large") as batches:
        assert (await take(batches)).children == large


# -- watches


async def test_a_watch_follows_the_database(database: RealtimeDatabase) -> None:
    await database.set("w", {"a": 1, "b": {"c": 1}})
    async with database.watch("w") as batches:
        first = await take(batches)
        assert first.initial
        assert first.children == {"a": 1, "b": {"c": 1}}
        await database.update("w", {"a": 2, "b/c": None, "d/e": 3})
        batch = await take(batches)
        assert sorted(changes(batch.changes)) == [
            ("added", "d", {"e": 3}),
            ("modified", "a", 2),
            ("removed", "b", {"c": 1}),
        ]
        await database.delete("w")
        assert (await take(batches)).children == {}
        await database.set("w/x", True)
        assert changes((await take(batches)).changes) == [("added", "x", True)]


async def test_a_watch_of_the_last_ones_slides(database: RealtimeDatabase) -> None:
    for number in range(4):
        await database.set(f"q/k{number}", number)
    async with database.watch("q", Query(limit_to_last=2)) as batches:
        assert (await take(batches)).children == {"k2": 2, "k3": 3}
        await database.set("q/k4", 4)
        seen = await until(batches, lambda batch: set(batch.children) == {"k3", "k4"})
        assert {("added", "k4", 4), ("removed", "k2", 2)} == set(changes(seen))
        await database.delete("q/k3")
        seen = await until(batches, lambda batch: set(batch.children) == {"k2", "k4"})
        assert {("added", "k2", 2), ("removed", "k3", 3)} == set(changes(seen))


@pytest.mark.parametrize(
    ("action", "options"),
    [("drop", {}), ("end", {}), ("cancel", {}), ("cancel", {"close": True}), ("auth_revoked", {}),
     ("auth_revoked", {"data": "Auth token is expired", "close": False})],
)  # fmt: skip
async def test_streams_that_end_heal_and_tell_only_what_changed(
    database: RealtimeDatabase, realtime_server: RealtimeProcess, realtime_namespace: str, action: str,
    options: dict[str, Any],
) -> None:  # fmt: skip
    await database.set("h", {"same": [1, {"x": True}], "n": 1})
    async with database.watch("h") as batches:
        await take(batches)
        await realtime_server.control(action, ns=realtime_namespace, path="/h", **options)
        await database.set("h/n", 2)
        assert changes(await until(batches, lambda batch: batch.children["n"] == 2)) == [("modified", "n", 2)]
        await settled(database, 1)


async def test_streams_that_are_refused_for_a_while_heal(
    database: RealtimeDatabase, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    await realtime_server.control("refuse", status=503, count=3, ns=realtime_namespace, path="/h", streams_only=True)
    await database.set("h/a", 1)
    async with database.watch("h") as batches:
        assert (await take(batches)).children == {"a": 1}
        assert database.stats().reconnects == 3


async def test_a_forbidden_stream_ends_its_watch(
    database: RealtimeDatabase, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    await realtime_server.control("refuse", status=403, ns=realtime_namespace, path="/h", streams_only=True)
    async with database.watch("h") as batches:
        with pytest.raises(PermissionDenied):
            await take(batches)


async def test_a_redirected_stream_is_followed(
    database: RealtimeDatabase, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    await database.set("moved/a", 1)
    location = f"http://{realtime_server.address}/moved.json?ns={realtime_namespace}"
    await realtime_server.control(
        "refuse", status=307, ns=realtime_namespace, path="/h", streams_only=True, headers={"Location": location}
    )
    async with database.watch("h") as batches:
        assert (await take(batches)).children == {"a": 1}


@pytest.mark.parametrize("seed", range(3))
async def test_any_writes_and_cut_offs_leave_the_watch_with_the_databases_state(
    database: RealtimeDatabase, realtime_server: RealtimeProcess, realtime_namespace: str, seed: int
) -> None:
    chance = random.Random(seed)

    def value(depth: int = 0) -> Any:
        if depth == 2 or chance.random() < 0.5:
            return chance.choice([None, True, 0, 1, 1.5, "", "x"])
        return {key: value(depth + 1) for key in chance.sample(KEYS, 2)}

    def path() -> str:
        return "/".join(chance.choice(KEYS) for _ in range(chance.randint(1, 3)))

    async with database.watch("r") as batches:
        held = dict((await take(batches)).children)
        for number in range(150):
            if chance.random() < 0.05:
                await realtime_server.control("drop", ns=realtime_namespace)
            if chance.random() < 0.3:
                await database.update("r", {chance.choice(KEYS): value(), f"z/{path()}": value()})
            else:
                await database.set(f"r/{path()}", value())
            if chance.random() < 0.2:
                await database.set("r/seen", number)
                follow(held, await until(batches, lambda batch: batch.children.get("seen") == number))  # noqa: B023
        await settled(database, 0)
        await database.set("r/seen", "end")
        follow(held, await until(batches, lambda batch: batch.children.get("seen") == "end"))
        found = await database.get("r")
        assert held == dict(batches.children) == found
        assert json.dumps(held, sort_keys=True) == json.dumps(found, sort_keys=True), "true is not 1"


# -- the server's own faults


async def test_a_killed_server_is_found_again(own_realtime: RealtimeProcess) -> None:
    async with opened(own_realtime) as database:
        await database.set("k", {"a": 1, "b": 2})
        async with database.watch("k") as batches:
            await take(batches)
            await own_realtime.kill()
            with pytest.raises(Unavailable):
                await database.get("k")
            await own_realtime.restart()  # without its data
            assert (await take(batches)).children == {}
            await database.set("k/c", 3)
            assert changes((await take(batches)).changes) == [("added", "c", 3)]


async def test_a_frozen_server_is_noticed(own_realtime: RealtimeProcess) -> None:
    """It keeps its sockets open and says nothing: only the silence shows."""
    await own_realtime.control("keep_alive", seconds=0.2)
    hasty = RealtimeOptions(
        silence_timeout_s=1.0, backoff_base_s=0.02, backoff_cap_s=0.2, reopens=100, reopens_window_s=1.0
    )
    async with opened(own_realtime, options=hasty) as database, database.watch("k") as batches:
        await take(batches)
        own_realtime.pause()
        try:
            async with asyncio.timeout(20):
                while database.stats().last_end != "silent":
                    await asyncio.sleep(0.01)
        finally:
            own_realtime.resume()
        await database.set("k/a", 1)
        assert changes((await take(batches)).changes) == [("added", "a", 1)]


async def test_firebase_opens_it_from_its_settings(realtime_server: RealtimeProcess, realtime_namespace: str) -> None:
    settings = FirebaseSettings(
        realtime_url=realtime_server.url_of(realtime_namespace), realtime_emulator_host=realtime_server.address
    )
    async with Firebase(settings) as firebase, opened(realtime_server, realtime_namespace) as other:
        await firebase.realtime.set("a", 1)
        assert await other.get("a") == 1
        assert 0 < await firebase.realtime.check() < 5


async def settled(database: RealtimeDatabase, reconnects: int) -> None:
    """Wait until every watch is up to date again after so many reconnects."""
    async with asyncio.timeout(20):
        while (stats := database.stats()).reconnects < reconnects or stats.connected < stats.streams:
            await asyncio.sleep(0.01)

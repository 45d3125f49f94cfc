from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from callboard import InvalidArgs, Unavailable
from callboard.connections import Connections
from callboard.fleet.presence import Presence
from callboard_registry.mirror import Entry, Mirror

if TYPE_CHECKING:
    from .conftest import Eventually, Log, Shelf

pytestmark = pytest.mark.anyio


@pytest.fixture
def make(presence: Presence, connections: Connections, log: Log, shelf: Shelf) -> Any:
    def mirror(**options: Any) -> Mirror:
        return Mirror(presence, connections, shelf, log.telemetry.log, **options)

    return mirror


@pytest.fixture
def written(eventually: Eventually) -> Any:
    async def written(mirror: Mirror, count: int) -> None:
        async def look() -> dict[str, Any]:
            return mirror.health()

        # Beyond the write: presence is read again before an entry is done with.
        await eventually(look, lambda found: found["written"] >= count and not found["pending"])

    return written


async def test_a_note_copies_what_presence_knows(make: Any, presence: Presence, shelf: Shelf, written: Any) -> None:
    async with make() as mirror:
        await presence.register("u1", "s1", authorized_companies_ids=["b", "a"])
        mirror.note("u1")
        await written(mirror, 1)
        assert shelf.entries == {"u1": Entry("u1", True, ["a", "b"])}
        await presence.unregister("s1")
        mirror.note("u1")
        await written(mirror, 2)
        assert shelf.entries == {"u1": Entry("u1", False, None)}
        assert mirror.health() == {
            "status": "ok", "pending": 0, "written": 2, "failed": 0, "dropped": 0, "last_error": None,
        }  # fmt: skip


async def test_notes_of_one_user_are_one_write(make: Any, shelf: Shelf, written: Any) -> None:
    gate = asyncio.Event()

    async def slow(_: Sequence[Entry]) -> None:
        await gate.wait()

    shelf.before_write = slow
    async with make() as mirror:
        for _ in range(1_000):
            mirror.note("u1")
        mirror.note("u2")
        assert mirror.health()["pending"] == 2
        gate.set()
        await written(mirror, 2)
    assert len(shelf.writes) == 1


async def test_what_waits_is_bounded_and_the_oldest_gives_way(make: Any, shelf: Shelf, written: Any) -> None:
    mirror = make(max_pending=3)
    for number in range(10):
        mirror.note(f"u{number}")
    assert mirror.health()["pending"] == 3
    assert mirror.health()["dropped"] == 7
    async with mirror:
        await written(mirror, 3)
    assert set(shelf.entries) == {"u7", "u8", "u9"}


async def test_a_failure_is_counted_logged_and_tried_again(make: Any, shelf: Shelf, log: Log, written: Any) -> None:
    failures = 2

    async def failing(_: Sequence[Entry]) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Unavailable

    shelf.before_write = failing
    async with make() as mirror:
        mirror.note("u1")
        await written(mirror, 1)
        health = mirror.health()
    assert (health["status"], health["failed"], health["last_error"]) == ("ok", 2, "Unavailable")
    assert len(log.lines("registry_mirror_error")) == 2


async def test_an_entry_that_is_never_taken_does_not_hold_up_the_others(make: Any, shelf: Shelf, written: Any) -> None:
    async def picky(entries: Sequence[Entry]) -> None:
        if any(entry.uid == "bad" for entry in entries):
            raise InvalidArgs

    shelf.before_write = picky
    async with make() as mirror:
        for uid in ("u1", "bad", "u2", "unacceptable"):
            mirror.note(uid)
        await written(mirror, 2)
        assert mirror.health()["dropped"] == 2
        assert mirror.health()["pending"] == 0
    assert set(shelf.entries) == {"u1", "u2"}


async def test_a_change_during_the_write_is_written_after_it(
    make: Any, presence: Presence, shelf: Shelf, written: Any
) -> None:
    async def leave(entries: Sequence[Entry]) -> None:
        if entries[0].online:
            await presence.unregister("s1")

    shelf.before_write = leave
    await presence.register("u1", "s1")
    async with make() as mirror:
        mirror.note("u1")
        await written(mirror, 2)
    assert [entries[0].online for entries in shelf.writes] == [True, False]


async def test_online_users_are_copied_again_by_one_replica(
    make: Any, presence: Presence, shelf: Shelf, eventually: Eventually
) -> None:
    await presence.register("u1", "s1")
    await presence.register("u2", "s2")
    await presence.register("u3", "s3")
    await presence.unregister("s3")
    async with make(refresh_s=0.3) as one, make(refresh_s=0.3) as two:

        async def look() -> int:
            return len(shelf.writes)

        while sum(len(entries) for entries in shelf.writes) < 6:
            before = len(shelf.writes)
            await eventually(look, lambda found, before=before: found > before)  # type: ignore[misc]
        assert one.health()["failed"] == two.health()["failed"] == 0
    rounds = [entry.uid for entries in shelf.writes for entry in entries]
    assert set(rounds[:2]) == set(rounds[2:4]) == {"u1", "u2"}


async def test_closing_copies_what_is_left(make: Any, shelf: Shelf) -> None:
    async with make() as mirror:
        for number in range(500):
            mirror.note(f"u{number}")
    assert len(shelf.entries) == 500
    assert mirror.health()["status"] == "down"


async def test_closing_does_not_wait_for_a_store_that_hangs(make: Any, shelf: Shelf, log: Log) -> None:
    async def hang(_: Sequence[Entry]) -> None:
        await asyncio.Event().wait()

    shelf.before_write = hang
    async with asyncio.timeout(10):
        async with make(drain_s=0.05) as mirror:
            mirror.note("u1")
    assert shelf.writes == []
    assert log.lines("registry_mirror_error")[-1]["pending"] == 1

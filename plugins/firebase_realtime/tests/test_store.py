"""Opening, health, look-ups, and the time that a sync claims to be of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callboard import ConfigurationError, PermissionDenied, Unavailable
from callboard.events.outbox import Frame, Outbox, timestamp
from callboard_firebase_realtime import FirebaseRealtime, store
from callboard_firebase_realtime.store import AT_A_TIME, as_of_now, look_up, realtime_health
from callboard_local import RealtimeProcess

pytestmark = pytest.mark.anyio


async def test_without_a_database_it_does_not_open(make_service: Callable[..., FirebaseRealtime]) -> None:
    service = make_service({})
    with pytest.raises(ConfigurationError, match="FIREBASE_REALTIME_DB_URL"):
        await service.open()
    assert await realtime_health(service.firebase) == {"status": "not configured"}


async def test_health(service: FirebaseRealtime) -> None:
    health = await service.health()
    assert (health["status"], health["streams"]["streams"]) == ("ok", 0)
    assert health["read_ms"] >= 0
    connected = await service.test_connection()
    assert (connected.status, connected.read_ms >= 0) == ("ok", True)


async def test_a_database_that_is_gone_shows(
    make_service: Callable[..., FirebaseRealtime], own_realtime: RealtimeProcess
) -> None:
    environ = {
        "FIREBASE_DATABASE_EMULATOR_HOST": own_realtime.address,
        "FIREBASE_REALTIME_DB_URL": own_realtime.url,
    }
    service = make_service(environ)
    await service.open()
    await own_realtime.control("refuse", status=403, ns="demo")
    with pytest.raises(PermissionDenied):
        await service.test_connection()

    await own_realtime.kill()
    with pytest.raises(Unavailable):
        await service.health()
    with pytest.raises(Unavailable):
        await service.test_connection()


async def test_look_ups_run_together_in_bounds_and_answer_in_order() -> None:
    running, most = 0, 0
    release = asyncio.Event()

    async def look(key: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == AT_A_TIME:
            release.set()
        await release.wait()
        running -= 1
        return key.upper()

    keys = [f"k{n}" for n in range(100)]
    assert await look_up(keys, look) == [key.upper() for key in keys]
    assert most == AT_A_TIME
    assert await look_up([], look) == []


async def test_the_first_error_ends_the_look_ups() -> None:
    cancelled = []

    async def look(key: str) -> str:
        if key == "k3":
            raise PermissionDenied("no")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(key)
            raise
        return key

    with pytest.raises(PermissionDenied):
        await look_up([f"k{n}" for n in range(100)], look)
    assert len(cancelled) in (AT_A_TIME - 1, AT_A_TIME)  # one that was waiting may have got the slot


def covered(as_of: str) -> int:
    """How many deltas a socket leaves out that a replica, whose clock is 3 s behind, sends just after the read."""
    outbox = Outbox("ada", lambda: None)
    outbox.begin({"firebase_realtime.messages": frozenset({"msg"})})
    sent_at = datetime.now(UTC) - timedelta(seconds=3)
    outbox.push(Frame("{}", 2, segment="msg", listener="firebase_realtime.messages", sent_at=sent_at))
    read_at: Any = timestamp(as_of)
    return len(outbox.synced("firebase_realtime.messages", ["sync"], {"msg": read_at}))


def test_a_delta_of_a_slower_clock_is_not_taken_for_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert covered(as_of_now()) == 0
    monkeypatch.setattr(store, "_CLOCKS_DIFFER_S", 0)
    assert covered(as_of_now()) == 1

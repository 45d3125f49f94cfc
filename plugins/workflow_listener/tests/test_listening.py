"""One user's listening, on a real Firestore, with Redis coming and going."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from callboard import Event
from callboard.connections import Connections
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_firebase import Firebase, FirebaseSettings
from callboard_local import ValkeyServer
from callboard_workflow_listener.listening import Listening
from callboard_workflow_listener.source import Source
from callboard_workflow_listener.watched import WatchedJobs

if TYPE_CHECKING:
    from .conftest import Jobs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def watched(own_valkey: ValkeyServer) -> AsyncIterator[WatchedJobs]:
    settings = load(Settings, {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(own_valkey.port)})
    async with Connections(settings, Telemetry(replica="test")) as connections:
        yield WatchedJobs(connections)


@pytest.fixture
async def firebase(firestore_address: str, firestore_project: str) -> AsyncIterator[Firebase]:
    async with Firebase(FirebaseSettings(project_id=firestore_project, emulator_host=firestore_address)) as firebase:
        yield firebase


@pytest.fixture
def listening(uid: str, firebase: Firebase, watched: WatchedJobs, changed: list[Event]) -> Listening:
    return Listening(uid, Source(firebase), watched, changed.append)


@pytest.fixture
def changed() -> list[Event]:
    return []


class Reader:
    """Reads a listening's changes, as the core does: the stream first, then its snapshot."""

    def __init__(self, listening: Listening) -> None:
        self._listening = listening
        self._changes = listening.changes()
        self._next = asyncio.create_task(self._read(), name="next")

    async def _read(self) -> Event:
        return await anext(self._changes)

    async def snapshot(self) -> list[Event]:
        async with asyncio.timeout(10):
            return await self._listening.snapshot()

    async def next(self) -> Event:
        async with asyncio.timeout(10):
            event = await self._next
        self._next = asyncio.create_task(self._read(), name="next")
        return event

    async def close(self) -> None:
        self._next.cancel()
        await asyncio.wait([self._next])
        await self._changes.aclose()


@pytest.fixture
async def reader(listening: Listening) -> AsyncIterator[Reader]:
    reader = Reader(listening)
    yield reader
    await reader.close()


async def test_the_first_state_is_the_snapshots_and_the_rest_are_changes(
    reader: Reader, jobs: Jobs, changed: list[Event]
) -> None:
    assert await reader.snapshot() == []
    await jobs.put("a", {"currency": "EUR"})
    assert (await reader.next()).type == "workflow.sync"
    await jobs.update("a", document__initial_data__currency="CHF")
    event = await reader.next()
    assert event.payload == {"invoice_changes": {"currency": "CHF"}}
    assert changed == [event]
    (sync,) = await reader.snapshot()
    assert sync.payload == {"job_id": "a", "invoice": {"currency": "CHF"}, "steps": {}}


async def test_listening_goes_on_without_redis_and_heeds_it_again(
    reader: Reader, listening: Listening, watched: WatchedJobs, own_valkey: ValkeyServer, jobs: Jobs, uid: str
) -> None:
    await reader.snapshot()
    for job_id in ("a", "b"):
        await jobs.put(job_id, {"currency": "EUR"})
        assert (await reader.next()).job_id == job_id
    await own_valkey.kill()
    listening.look()
    await jobs.update("a", document__initial_data__currency="CHF")
    assert (await reader.next()).payload == {"invoice_changes": {"currency": "CHF"}}
    await own_valkey.restart()
    await watched.add(uid, "b")
    listening.look()
    event = await reader.next()
    assert (event.type, event.job_id) == ("workflow.sync", "b")


async def test_a_refusal_by_the_source_is_raised_to_both_halves(firebase: Firebase, watched: WatchedJobs) -> None:
    reader = Reader(Listening("..", Source(firebase), watched, lambda _: None))
    with pytest.raises(Exception, match="segment") as of_snapshot:
        await reader.snapshot()
    with pytest.raises(Exception, match="segment") as of_stream:
        await reader.next()
    assert of_snapshot.value is of_stream.value
    await reader.close()

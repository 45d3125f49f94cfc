"""The plugin on a real Valkey and a real Firestore: the embedded one, and (marked `emulator`) Google's."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from google.cloud.firestore import AsyncClient

from callboard.connections import Connections
from callboard.fleet.presence import Presence
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_firebase import Firebase, FirebaseSettings
from callboard_local import ValkeyServer
from callboard_local.session_loop import anyio_backend as anyio_backend
from callboard_local.session_loop import grpc_stays as grpc_stays
from callboard_local.session_loop import one_event_loop as one_event_loop
from callboard_registry.mirror import Entry

T = TypeVar("T")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """A blocking call on the event loop, made from this package, fails the test that makes it."""
    with blockbuster_ctx(["callboard_registry"]) as guard:
        yield guard


@pytest.fixture
async def firestore(firestore_address: str, firestore_project: str) -> AsyncIterator[AsyncClient]:
    """An empty Firestore."""
    settings = FirebaseSettings(project_id=firestore_project, emulator_host=firestore_address)
    async with Firebase(settings) as firebase:
        yield firebase.client


class Log:
    """A service's log, and what it said."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.telemetry = Telemetry(replica="test", stream=self._stream)

    def lines(self, event: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [record for record in records if record["event"] == event]


@pytest.fixture
def log() -> Log:
    return Log()


def connections_to(server: ValkeyServer, log: Log) -> Connections:
    settings = load(Settings, {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(server.port)})
    return Connections(settings, log.telemetry)


@pytest.fixture
async def connections(own_valkey: ValkeyServer, log: Log) -> AsyncIterator[Connections]:
    async with connections_to(own_valkey, log) as opened:
        yield opened


@pytest.fixture
async def presence(connections: Connections, log: Log) -> AsyncIterator[Presence]:
    async with Presence(load(Settings, {}), connections, log.telemetry) as presence:
        yield presence


class Shelf:
    """A store of this test's own, slow or broken at will."""

    def __init__(self) -> None:
        self.writes: list[list[Entry]] = []
        self.before_write: Callable[[Sequence[Entry]], Any] = _nothing

    @property
    def entries(self) -> dict[str, Entry]:
        """The last entry of each user."""
        return {entry.uid: entry for entries in self.writes for entry in entries}

    def accepts(self, uid: str) -> bool:
        return uid != "unacceptable"

    async def write(self, entries: Sequence[Entry]) -> None:
        await self.before_write(entries)
        self.writes.append(list(entries))


async def _nothing(_: Sequence[Entry]) -> None:
    pass


class Eventually:
    """Waits for what no event announces."""

    async def __call__(self, look: Callable[[], Awaitable[T]], reached: Callable[[T], object] = bool) -> T:
        """What `look` finds as soon as `reached` holds for it; TimeoutError after ten seconds."""
        async with asyncio.timeout(10):
            while True:
                found = await look()
                if reached(found):
                    return found
                await asyncio.sleep(0.01)


@pytest.fixture
def eventually() -> Eventually:
    return Eventually()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()

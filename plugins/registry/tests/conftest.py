"""The plugin on a real Valkey and a real Firestore: the embedded one, and (marked `emulator`) Google's."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from google.cloud.firestore import AsyncClient

from callboard.connections import Connections
from callboard.fleet.presence import Presence
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_firebase import Firebase, FirebaseSettings
from callboard_local import FirestoreProcess, ValkeyServer
from callboard_registry.mirror import Entry

from .google_emulator import google_emulator


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_event_loop(anyio_backend: str) -> None:
    """All tests share a loop, as a service does: gRPC delivers a cancelled call's last events a moment later."""


@pytest.fixture(scope="session")
def google_firestore() -> Iterator[str]:
    with google_emulator() as address:
        yield address


@pytest.fixture(params=["embedded", pytest.param("google", marks=pytest.mark.emulator)])
def firestore_address(request: pytest.FixtureRequest) -> str:
    """`host:port` of each Firestore in turn."""
    if request.param == "google":
        return str(request.getfixturevalue("google_firestore"))
    server: FirestoreProcess = request.getfixturevalue("firestore_server")
    return server.address


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

"""Where the writes of a benchmark go: a back end whose changes a listener of the service tells as events.

A source more is a class more here, and its name in `SOURCES`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import httpx
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import AsyncClient, FieldFilter

from callboard_firebase.channel import connect, disconnect
from callboard_local import FirestoreProcess, RealtimeProcess
from callboard_local.server import ServerProcess

PROJECT = "demo"


class Source(Protocol):
    """A server, and a writer of its own connection. `async with` starts both."""

    name: str
    listeners: int
    """Listeners that it has in the service, for each user online."""

    @property
    def server(self) -> ServerProcess:
        """Its process, to be killed and started again."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @property
    def environ(self) -> Mapping[str, str]:
        """What the service needs to listen to it, and to nothing else."""

    async def write(self, uid: str, key: str, n: int) -> None:
        """Write `n`, and the time, to the entry `key` of a user; raises when it is not known to have been written.

        Keys are to sort, as texts, by when they were first written.
        """

    async def read(self, uid: str) -> dict[str, int]:
        """What is stored for a user: `n` by key."""

    def told(self, event: dict[str, Any]) -> tuple[bool, dict[str, tuple[int, float]]]:
        """From an event: whether it is a sync, and by key `n` and the time (monotonic) at which it was written."""


def entry(n: int) -> str:
    """`n` and the time as a text that every back end and every event carries as it is."""
    return json.dumps([n, time.monotonic()])


def number_and_time(text: str) -> tuple[int, float]:
    """What `entry` made a text of."""
    n, written_at = json.loads(text)
    return n, written_at


class Firestore:
    """Unread notifications: `notif.sync`, `notif.add`, `notif.update`."""

    name = "Firestore"
    listeners = 1

    def __init__(self, data: Path | None = None) -> None:
        self.server: ServerProcess = FirestoreProcess(max_streams=100, data=data)
        self._client: AsyncClient | None = None

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        self._client = AsyncClient(project=PROJECT, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
        await connect(self._client, self.server.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await disconnect(self._client)
        await self.server.__aexit__(kind, error, traceback)

    @property
    def environ(self) -> Mapping[str, str]:
        return {
            "GOOGLE_PROJECT_ID": PROJECT,
            "FIRESTORE_EMULATOR_HOST": self.server.address,
            "WORKFLOW_LISTENER_ENABLED": "false",
        }

    async def write(self, uid: str, key: str, n: int) -> None:
        document = self._collection(uid).document(key)
        await document.set({"read": False, "file_name": entry(n)}, retry=None, timeout=1)

    async def read(self, uid: str) -> dict[str, int]:
        unread = self._collection(uid).where(filter=FieldFilter("read", "==", False))
        return {found.id: number_and_time(found.get("file_name"))[0] async for found in unread.stream()}

    def told(self, event: dict[str, Any]) -> tuple[bool, dict[str, tuple[int, float]]]:
        kind, payload = event["type"], event["payload"]
        items = payload["notifications"] if kind == "notif.sync" else [payload]
        if kind not in ("notif.sync", "notif.add", "notif.update"):
            return False, {}
        return kind == "notif.sync", {item["doc_id"]: number_and_time(item["file_name"]) for item in items}

    def _collection(self, uid: str) -> Any:
        assert self._client is not None
        return self._client.collection(f"clients/{uid}/notifications")


class Realtime:
    """Direct messages in the Realtime Database: `msg.sync`, `msg.new`."""

    name = "Realtime Database"
    listeners = 1

    def __init__(self, data: Path | None = None) -> None:
        self._process = RealtimeProcess(data=data)
        self.server: ServerProcess = self._process
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        self._client = httpx.AsyncClient(base_url=f"http://{self.server.address}", params={"ns": PROJECT}, timeout=1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
        await self.server.__aexit__(kind, error, traceback)

    @property
    def url(self) -> str:
        """The `databaseURL` for Google's client."""
        return self._process.url_of(PROJECT)

    @property
    def environ(self) -> Mapping[str, str]:
        return {
            "FIREBASE_DATABASE_EMULATOR_HOST": self.server.address,
            "FIREBASE_REALTIME_DB_URL": self.url,
            # Those that want a Firestore would be put aside, and the service never be ready.
            "LISTENERS_PLUGINS": "firebase_realtime,registry",
        }

    async def write(self, uid: str, key: str, n: int) -> None:
        assert self._client is not None
        message = json.dumps({"file_name": entry(n)})
        path = f"{inbox_path(uid)}/{key}.json"
        (await self._client.put(path, content=message, params={"print": "silent"})).raise_for_status()

    async def read(self, uid: str) -> dict[str, int]:
        assert self._client is not None
        found = (await self._client.get(f"{inbox_path(uid)}.json")).raise_for_status().json() or {}
        return {key: number_and_time(message["file_name"])[0] for key, message in found.items()}

    def told(self, event: dict[str, Any]) -> tuple[bool, dict[str, tuple[int, float]]]:
        kind, payload = event["type"], event["payload"]
        if kind not in ("msg.sync", "msg.new"):
            return False, {}
        items = payload["messages"] if kind == "msg.sync" else [payload]
        return kind == "msg.sync", {item["doc_id"]: number_and_time(item["file_name"]) for item in items}


def inbox_path(uid: str) -> str:
    """Where a user's direct messages lie in the Realtime Database."""
    return f"clients/{uid}/direct_message_notif"


SOURCES: dict[str, Callable[[Path | None], Source]] = {"firestore": Firestore, "realtime": Realtime}


@asynccontextmanager
async def source(name: str, data: Path | None = None) -> AsyncIterator[Source]:
    """`data`: a file to keep what is written in, so that it survives the server."""
    async with SOURCES[name](data) as started:
        yield started

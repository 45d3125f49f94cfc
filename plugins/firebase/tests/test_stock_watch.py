"""What `on_snapshot` of Google's own client does on the same bad days: why the engine exists, and its control."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import Client
from grpc import StatusCode

from callboard_local.fault_figures import Fault

from .listen_server import Connection, Kind, ListenServer, Script

pytestmark = [
    pytest.mark.anyio,
    # The only trace of these deaths: an exception in a thread that nobody looks at.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


class Stock:
    """An `on_snapshot` listener: what it was told, and whether it lives."""

    def __init__(self, address: str, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        self.told = 0
        self._fails = fails
        self._client = Client(project="demo", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
        self._watch: Any = self._client.collection("notes").on_snapshot(self._callback)

    def _callback(self, *_: Any) -> None:
        self.told += 1
        if self._fails:
            raise RuntimeError("a defect in a callback")

    @property
    def is_dead(self) -> bool:
        return not any(thread.name == "Thread-ConsumeBidirectionalStream" for thread in threading.enumerate())

    def close(self) -> None:
        self._watch.unsubscribe()
        self._client.close()  # type: ignore[no-untyped-call]


@asynccontextmanager
async def stock(
    script: Script, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False
) -> AsyncIterator[tuple[ListenServer, Stock]]:
    async with ListenServer(script) as server:
        listener = await asyncio.to_thread(Stock, server.address, monkeypatch, fails=fails)
        try:
            yield server, listener
        finally:
            await asyncio.to_thread(listener.close)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def denied(connection: Connection, target: int) -> None:
    await connection.fail(StatusCode.PERMISSION_DENIED)


async def cancelled(connection: Connection, target: int) -> None:
    await connection.fail(StatusCode.CANCELLED)


async def ended(connection: Connection, target: int) -> None:
    return


async def removed(connection: Connection, target: int) -> None:
    await connection.change(Kind.REMOVE, target, cause=7)
    await connection.silence()


@pytest.mark.fault(row=19, control=True)
@pytest.mark.parametrize("ending", [denied, cancelled, ended, removed])
async def test_a_stock_listener_dies_of_an_ending_and_tells_nobody(
    ending: Callable[[Connection, int], Any], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        await connection.answer(target, ["notes/a"], at=10, token=b"ten")
        await told.wait()
        await ending(connection, target)

    told = asyncio.Event()
    async with stock(script, monkeypatch) as (server, listener):
        await eventually(lambda: listener.told == 1)
        told.set()
        await eventually(lambda: listener.is_dead)
        assert len(server.connections) == 1
        assert listener.told == 1
        fault.figure(reopened=0, told_the_caller=0)


@pytest.mark.fault(row=19, control=True)
async def test_a_stock_listener_dies_of_its_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(connection: Connection) -> None:
        await connection.answer(await connection.target(), ["notes/a"], at=10, token=b"ten")
        await connection.silence()

    async with stock(script, monkeypatch, fails=True) as (server, listener):
        await eventually(lambda: listener.told == 1 and listener.is_dead)
        assert len(server.connections) == 1


@pytest.mark.fault(row=20, control=True)
async def test_a_stock_listener_asks_without_a_pause(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    async def script(connection: Connection) -> None:
        if connection.number <= 200:
            await connection.fail(StatusCode.UNAVAILABLE)
        await connection.silence()

    began = time.monotonic()
    async with stock(script, monkeypatch) as (server, _):
        await server.connected(201)
        fault.figure(asked=200, within_s=time.monotonic() - began)

"""Tell callbacks about users who came and went, one owned task for each, so that none can hold up another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from callboard.fleet.tasks import heed_cancellation
from callboard.telemetry import Telemetry, where_raised

Callback: TypeAlias = Callable[[str, bool], Awaitable[None]]


class Watchers:
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._watchers: list[_Watcher] = []
        self._running = False

    def add(self, callback: Callback) -> None:
        watcher = _Watcher(callback, self._telemetry)
        self._watchers.append(watcher)
        if self._running:
            watcher.start()

    def tell(self, uid: str, online: bool) -> None:
        """Queue a transition for every callback; returns at once."""
        for watcher in self._watchers:
            watcher.tell(uid, online)

    def start(self) -> None:
        self._running = True
        for watcher in self._watchers:
            watcher.start()

    async def stop(self) -> None:
        """Cancel the callbacks; what they have not been told is forgotten."""
        self._running = False
        await asyncio.gather(*(watcher.stop() for watcher in self._watchers))


class _Watcher:
    """One callback. While it is behind, only the latest state of each user waits for it, so the queue is bounded."""

    def __init__(self, callback: Callback, telemetry: Telemetry) -> None:
        self._callback = callback
        self._telemetry = telemetry
        self._pending: dict[str, bool] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def tell(self, uid: str, online: bool) -> None:
        self._pending.pop(uid, None)
        self._pending[uid] = online
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="presence watcher")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                uid = next(iter(self._pending))
                await self._call(uid, self._pending.pop(uid))
                heed_cancellation()

    async def _call(self, uid: str, online: bool) -> None:
        try:
            await self._callback(uid, online)
        except Exception as error:  # noqa: BLE001 - one callback's errors are not the others'
            name = getattr(self._callback, "__qualname__", type(self._callback).__name__)
            self._telemetry.log.error(
                "task_failed", task=f"presence watcher {name}", uid=self._telemetry.user(uid), **where_raised(error)
            )

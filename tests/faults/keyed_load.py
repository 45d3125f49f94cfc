"""Calls and events that go on while something is broken."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import Any, Self

import httpx
from faults.fleet import Fleet, Replica
from faults.page import Page


class KeyedLoad:
    """Keyed writes, each retried with its key until it is answered, as our clients do."""

    def __init__(self, fleet: Fleet) -> None:
        self.outcomes: Counter[str] = Counter()
        self.refused = 0
        """Answers that asked for another try."""
        self.longest_s = 0.0
        self.names: list[str] = []
        self._fleet = fleet
        self._numbers = itertools.count()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._call(replica), name=f"load on {replica.name}")
            for replica in self._fleet.replicas
            for _ in range(4)
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _call(self, replica: Replica) -> None:
        while not self._stopping:
            name = f"call-{next(self._numbers)}"
            self.names.append(name)
            self.outcomes[await self._answer(replica, name)] += 1

    async def _answer(self, replica: Replica, name: str) -> str:
        async with asyncio.timeout(60):
            while True:
                began = time.monotonic()
                reply = await replica.call("LEDGER.append", name, hold_s=0.05, user="ann", key=name)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                if reply["ok"]:
                    return "ok"
                error: dict[str, Any] = reply["error"]
                if error["code"] != "UNAVAILABLE":
                    return str(error["code"])
                self.refused += 1
                await asyncio.sleep(error["retry_after_ms"] / 1000)

    async def executions(self) -> Counter[int]:
        """How many of the calls ran how often."""
        return Counter([await self._fleet.executions(name) for name in self.names])


async def until_told(fleet: Fleet, page: Page, numbers: itertools.count[int]) -> None:
    """Publish through a replica until the page hears of it."""
    async with asyncio.timeout(60):
        while True:
            number = next(numbers)
            try:
                await fleet.replicas[0].call("LEDGER.notify", "ann", number, timeout_ms=5_000)
            except httpx.TransportError as error:
                raise AssertionError("a replica has fallen") from error
            for _ in range(20):
                if number in page.told:
                    return
                await asyncio.sleep(0.01)

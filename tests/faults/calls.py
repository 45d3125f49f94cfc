"""A steady stream of calls to one replica, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from faults.ear import percentile
from faults.fleet import Replica


@dataclass(frozen=True)
class Outcome:
    """`code` is `OK` or the error's; `at` the monotonic time of the answer."""

    code: str
    took_s: float
    at: float
    name: str


class Calls:
    """`async with Calls(replica, "LEDGER.put", lambda name: {…}) as calls`: one after the other, `pause_s` between."""

    def __init__(
        self, replica: Replica, method: str, arguments: Callable[[str], dict[str, Any]], *, pause_s: float = 0.05
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._replica = replica
        self._method = method
        self._arguments = arguments
        self._pause_s = pause_s

    def codes(self, since: int = 0) -> Counter[str]:
        return Counter(each.code for each in self.outcomes[since:])

    def took(self, share: float, since: int = 0) -> float:
        """The time that `share` of the calls did not exceed."""
        return percentile([each.took_s for each in self.outcomes[since:]], share)

    async def until(self, code: str, within_s: float = 30) -> None:
        """Wait for the next answer like this; TimeoutError."""
        seen = len(self.outcomes)
        async with asyncio.timeout(within_s):
            while code not in self.codes(seen):
                await asyncio.sleep(0.005)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"calls of {self._method}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def _run(self) -> None:
        number = 0
        while True:
            number += 1
            name = f"{self._method}:{self._replica.name}:{number}"
            began = time.monotonic()
            reply = await self._replica.call(self._method, **self._arguments(name))
            ended = time.monotonic()
            code = "OK" if reply["ok"] else reply["error"]["code"]
            self.outcomes.append(Outcome(code, ended - began, ended, name))
            await asyncio.sleep(self._pause_s)


def reads(replica: Replica, **options: Any) -> Calls:
    """Calls that have nothing to do with Redis."""
    return Calls(replica, "LEDGER.read", lambda name: {"name": name}, **options)


def keyed_writes(replica: Replica, **options: Any) -> Calls:
    """Each with a key of its own, and its own name in LEDGER."""
    return Calls(replica, "LEDGER.append", lambda name: {"name": name, "user": "writer", "key": name}, **options)

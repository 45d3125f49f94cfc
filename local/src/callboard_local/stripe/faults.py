"""Faults that tests ask for: the next requests fail with a status, hang, or lose their connection."""

import asyncio
from dataclasses import dataclass
from typing import Literal

Kind = Literal["status", "hang", "drop"]


@dataclass
class Fault:
    """`times` requests whose path begins with `path` fail like this. `executed`: after their work was done.

    `status`: answered with it. `hang`: unanswered, until the client goes or the faults are lifted; then the request
    goes on. `drop`: the connection is closed without an answer.
    """

    kind: Kind
    times: int = 1
    status: int = 500
    path: str = "/v1/"
    executed: bool = False


class Faults:
    """Of one account."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lifted = asyncio.Event()
        self.hanging = 0

    def add(self, fault: Fault) -> None:
        self._waiting.append(fault)

    def lift(self) -> None:
        """No more faults; requests that hang go on."""
        self._waiting.clear()
        self._lifted.set()
        self._lifted = asyncio.Event()

    def next(self, path: str) -> Fault | None:
        """The fault that a request to this path meets."""
        for fault in self._waiting:
            if path.startswith(fault.path):
                fault.times -= 1
                if fault.times <= 0:
                    self._waiting.remove(fault)
                return fault
        return None

    async def hang(self) -> None:
        """Wait until the faults are lifted."""
        self.hanging += 1
        try:
            await self._lifted.wait()
        finally:
            self.hanging -= 1

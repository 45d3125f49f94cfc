"""The service's life: `starting`, `ready`, `draining`, `stopped`. The doors ask it before they let work in."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

State = Literal["starting", "ready", "draining", "stopped"]


class Lifecycle:
    def __init__(self) -> None:
        self.state: State = "starting"
        self.draining = asyncio.Event()
        self.hurried = asyncio.Event()
        self._born = time.monotonic()

    def ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"

    def drain(self) -> None:
        """The service was told to stop: no new work from now on. Safe to call twice, and from a signal handler."""
        if self.state in ("starting", "ready"):
            self.state = "draining"
            self.draining.set()

    def hurry(self) -> None:
        """Whoever stops the service waits for it: what runs is interrupted, and let go as cleanly as ever."""
        self.hurried.set()

    def stopped(self) -> None:
        self.state = "stopped"
        self.draining.set()

    def uptime_s(self) -> float:
        return time.monotonic() - self._born

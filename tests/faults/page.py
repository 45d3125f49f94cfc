"""A user's screen: what it shows by the rules of docs/delivery.md, and every breach of them that it sees."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any, Self

from faults.fleet import TOKEN
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

LISTENER = "ledger.numbers"


class Page:
    """`async with Page("ann", lambda: replica.ws_url) as page`: connects, and again whenever it is closed.

    `number` is what it shows of LEDGER's listener, None before the first sync. `heeds_fences=False` is a consumer that
    ignores them: a control.
    """

    def __init__(
        self,
        uid: str,
        url: Callable[[], str],
        *,
        session_id: str | None = None,
        token: str = TOKEN,
        heeds_fences: bool = True,
        longest_pause_s: float = 1.0,
    ) -> None:
        self.uid = uid
        self.number: int | None = None
        self.events: list[dict[str, Any]] = []
        self.told: list[int] = []
        """The numbers of `count.told`, in their order."""
        self.breaches: list[str] = []
        self.duplicates = 0
        """Events whose id had been seen, and which it ignored."""
        self.closed: list[int] = []
        """The close codes of its sockets, 1006 for those without."""
        self.closed_at = 0.0
        """When its last socket ended, on the monotonic clock."""
        self.is_connected = False
        self.is_synced = False
        """Whether its present socket has told a sync."""
        self.connects = 0
        self.last_event_at = 0.0
        self._url = url
        self._query = f"?uid={uid}" + (f"&session_id={session_id}" if session_id else "")
        self._token = token
        self._heeds_fences = heeds_fences
        self.longest_pause_s = longest_pause_s
        self._seen: set[str] = set()
        self._fence = 0
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._stay_connected(), name=f"page of {self.uid}")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def until(self, condition: Callable[[Page], object], within_s: float = 30) -> None:
        """Wait until it holds of this page; TimeoutError."""
        async with asyncio.timeout(within_s):
            while not condition(self):
                await asyncio.sleep(0.005)

    def drop(self) -> None:
        """Cut its connection as a network does: no close frame, no code."""
        if self._socket is not None:
            self._socket.transport.abort()

    def opened(self) -> None:
        """A connection is there."""
        self.is_connected, self.is_synced = True, False
        self.connects += 1

    def ended(self, code: int | None) -> None:
        """The connection is over, with this close code; None: the page has left."""
        self.is_connected = self.is_synced = False
        self.closed_at = time.monotonic()

    async def _stay_connected(self) -> None:
        while True:
            code: int | None = None
            try:
                async with connect(
                    self._url() + self._query,
                    additional_headers={"Authorization": f"Bearer {self._token}"}, proxy=None, open_timeout=20,
                ) as self._socket:  # fmt: skip
                    self.opened()
                    async for text in self._socket:
                        self.take(json.loads(text))
                code = self._socket.close_code or 1006
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError) as error:
                code = error.rcvd.code if isinstance(error, ConnectionClosed) and error.rcvd else 1006
            finally:
                if self.is_connected:
                    self.ended(code)
            self.closed.append(code)
            if code >= 3500:
                self.breaches.append(f"closed for good: {code}")
                return
            await asyncio.sleep(random.uniform(0, self.longest_pause_s))

    def take(self, event: dict[str, Any]) -> None:
        """Apply one event."""
        self.events.append(event)
        self.last_event_at = time.monotonic()
        if event["uid"] != self.uid:
            self.breaches.append(f"an event of {event['uid']}")
        if self._is_stale(event):  # before its id counts as seen: the owner of now may tell the same
            return
        if event["id"] in self._seen:
            self.duplicates += 1
            return
        self._seen.add(event["id"])
        if event["type"] == "count.told":
            self.told.append(event["payload"]["n"])
        elif event.get("listener") == LISTENER:
            self._apply(event["type"], event["payload"]["n"])

    def _is_stale(self, event: dict[str, Any]) -> bool:
        fence = event.get("fence")
        if fence is None or event.get("listener") != LISTENER:
            return False
        if fence < self._fence:
            self.breaches.append(f"stale: fence {fence} after {self._fence}")
            return self._heeds_fences
        self._fence = fence
        return False

    def _apply(self, type: str, number: int) -> None:  # noqa: A002 - the field's name
        if type == "count.sync":
            self.number, self.is_synced = number, True
        elif not self.is_synced or self.number is None:
            self.breaches.append(f"{number} before any sync")
        elif number > self.number + 1:
            self.breaches.append(f"{number} after {self.number}")
        else:
            self.number = max(self.number, number)

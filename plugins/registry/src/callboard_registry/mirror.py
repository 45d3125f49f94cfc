"""The mirror: who is online, copied to where other systems look, behind the calls' backs.

A transition only notes the user's id; one task does the copying. So a call is never slower or less certain for the
mirror, however slow or far away its store is.

Per user only the need to copy is queued, not a state: what is written is read from presence just before, and read
again after. Of several replicas that write at the same time, the last one therefore corrects what it wrote; the copy
converges on the truth whatever the order. Online users are copied again every `refresh_s`, each by whichever replica
claims them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
from structlog.typing import FilteringBoundLogger

from callboard.connections import Connections, redis_errors
from callboard.errors import InvalidArgs
from callboard.fleet.presence import Presence
from callboard.telemetry import where_raised

REFRESH_S = 300.0
MAX_PENDING = 10_000
"""Users waiting to be copied; beyond it the oldest gives way, and is healed by the next refresh."""
BATCH = 200
DRAIN_S = 3.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_PAGE = 500


class Entry(msgspec.Struct, frozen=True):
    """What the mirror knows of a user. `companies` of None: all companies, or, offline, not known."""

    uid: str
    online: bool
    companies: list[str] | None = None


class Store(Protocol):
    """Where the copies go."""

    def accepts(self, uid: str) -> bool:
        """Whether an entry for this user can be written at all."""

    async def write(self, entries: Sequence[Entry]) -> None:
        """Write all of them or raise; bounded in time. Writing the same entries again does no harm."""


class Mirror:
    """An async context manager; `note(uid)` from anywhere on the loop."""

    def __init__(
        self,
        presence: Presence,
        connections: Connections,
        store: Store,
        log: FilteringBoundLogger,
        *,
        refresh_s: float = REFRESH_S,
        max_pending: int = MAX_PENDING,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._presence = presence
        self._connections = connections
        self._store = store
        self._log = log
        self._refresh_s = refresh_s
        self._max_pending = max_pending
        self._drain_s = drain_s
        self._pending: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._refresh_at = 0.0
        self._failures = 0
        self._last_error: str | None = None
        self._written = self._failed = self._dropped = 0

    async def __aenter__(self) -> Self:
        # The first refresh comes at a random point, so that replicas started together do not all look at once.
        self._refresh_at = asyncio.get_running_loop().time() + self._refresh_s * random.random()  # noqa: S311
        self._task = asyncio.create_task(self._run(), name="registry mirror")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Copy what is left, for at most `drain_s` seconds; what does not make it is logged by number."""
        if self._task is None:
            return
        self._closing.set()
        self._wake.set()
        await asyncio.wait([self._task], timeout=self._drain_s)
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._pending:
            self._log.warning("registry_mirror_error", pending=len(self._pending), error="closed before the end")

    def note(self, uid: str) -> None:
        """Have this user copied soon."""
        if not self._store.accepts(uid):
            self._dropped += 1
            return
        self._pending.pop(uid, None)
        self._pending[uid] = None
        if len(self._pending) > self._max_pending:
            self._pending.pop(next(iter(self._pending)))
            self._dropped += 1
        self._wake.set()

    def health(self) -> dict[str, Any]:
        """`status` is `ok`, `failing` (it is tried again) or `down` (the task is gone); the rest are counts."""
        alive = self._task is not None and not self._task.done()
        return {
            "status": "failing" if alive and self._failures else "ok" if alive else "down",
            "pending": len(self._pending),
            "written": self._written,
            "failed": self._failed,
            "dropped": self._dropped,
            "last_error": self._last_error,
        }

    # -- the task

    async def _run(self) -> None:
        while not (self._closing.is_set() and not self._pending):
            try:
                await self._sleep()
                if not self._closing.is_set():
                    await self._refresh()
                while self._pending:
                    await self._copy(list(self._pending)[:BATCH])
                self._failures = 0
            except Exception as error:  # noqa: BLE001 - one task serves all: whatever fails is counted and tried again
                self._failed += 1
                self._failures += 1
                self._last_error = type(error).__name__
                self._log.warning("registry_mirror_error", pending=len(self._pending), **where_raised(error))
                if self._closing.is_set():
                    return
                await self._pause()

    async def _sleep(self) -> None:
        """Until there is something to copy, a refresh is due, or the mirror closes."""
        wait_s = self._refresh_at - asyncio.get_running_loop().time()
        if not self._pending and wait_s > 0:
            await _wait(self._wake, wait_s)
        self._wake.clear()

    async def _pause(self) -> None:
        ceiling = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures, 10))
        await _wait(self._closing, ceiling * random.random())  # noqa: S311 - full jitter

    async def _copy(self, uids: list[str]) -> None:
        entries = await self._read(uids)
        try:
            await self._store.write(entries)
        except InvalidArgs:
            await self._without_the_culprit(uids)
            return
        self._written += len(entries)
        # Presence may have changed, and another replica written it, while this write was on its way.
        for before, now in zip(entries, await self._read(uids), strict=True):
            if before == now:
                self._pending.pop(now.uid, None)

    async def _without_the_culprit(self, uids: list[str]) -> None:
        """An entry that the store never takes must not hold up the others: each is written alone, that one dropped."""
        if len(uids) > 1:
            for uid in uids:
                await self._copy([uid])
            return
        self._pending.pop(uids[0], None)
        self._dropped += 1

    async def _read(self, uids: list[str]) -> list[Entry]:
        online = await self._presence.online_among(uids)
        entries = []
        for uid in uids:
            user = online.get(uid)
            companies = user.authorized_companies_ids if user else None
            entries.append(Entry(uid, user is not None, None if companies is None else sorted(companies)))
        return entries

    async def _refresh(self) -> None:
        """Claim the online users whose copy is old. A claim is a key that lives a little less than the interval."""
        now = asyncio.get_running_loop().time()
        if now < self._refresh_at:
            return
        cursor: str | None = None
        while True:
            page = await self._presence.online_users(cursor, _PAGE)
            with redis_errors(self._connections):
                claims = self._connections.commands.pipeline(transaction=False)
                for uid in page.users:
                    claims.set(f"callboard:registry:{{{uid}}}:mirrored", 1, nx=True, px=int(self._refresh_s * 900))
                won = await claims.execute() if page.users else []
            for uid, claimed in zip(page.users, won, strict=True):
                if claimed:
                    self.note(uid)
            cursor = page.cursor
            if cursor is None:
                break
        self._refresh_at = now + self._refresh_s


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return

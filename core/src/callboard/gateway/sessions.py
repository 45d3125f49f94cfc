"""The sessions of this replica's sockets: begun when one opens, kept alive together, ended with their last socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from callboard.errors import AlreadyExists, Unavailable
from callboard.fleet.tasks import heed_cancellation
from callboard.gateway.admission import Visit
from callboard.messages import new_id
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from callboard.fleet.presence import Presence

_BEATS_AT_A_TIME = 200
_REGISTRATIONS_AT_A_TIME = 16
_HURRIED_PAUSE_S = 0.1

T = TypeVar("T")


class Sessions:
    """`visits` are those of the sockets that are open now; `opened` and `closed` are told of each."""

    def __init__(
        self,
        presence: Presence,
        telemetry: Telemetry,
        visits: Callable[[], Iterable[Visit]],
        *,
        heartbeat_interval_s: float,
    ) -> None:
        self._presence = presence
        self._telemetry = telemetry
        self._visits = visits
        self._heartbeat_interval_s = heartbeat_interval_s
        self._sockets: Counter[tuple[str, str]] = Counter()
        self._hurried = asyncio.Event()
        self._holders: dict[tuple[str, str], str] = {}
        """By session, whose it is in Redis since it has a socket here. A client may come back, here or to another
        replica, before its old socket is known to be dead; that one must not end a session that is used again."""

    def opened(self, visit: Visit) -> None:
        self._sockets[_key(visit)] += 1

    def closed(self, visit: Visit) -> None:
        self._sockets[_key(visit)] -= 1
        if not self._sockets[_key(visit)]:
            del self._sockets[_key(visit)]

    async def begin(self, visit: Visit, *, move: bool) -> None:
        """`move`: whether it may take the session id from another user; else it gets a fresh one."""
        self._holders.setdefault(_key(visit), new_id())
        try:
            await self._register(visit, move=move)
        except Unavailable:
            return  # `connections` reports the outage; the heartbeat registers what is not there

    async def end(self, visit: Visit) -> None:
        """Nothing happens while another socket of the session is open."""
        if self._is_open(visit):
            return
        holder = self._holders.pop(_key(visit), "")
        try:
            await self._presence.unregister(visit.session_id, uid=visit.uid, holder=holder)
        except Unavailable:
            return  # the session ends by its TTL

    def hurry(self) -> None:
        """Redis is back, and may have forgotten who is here: the next heartbeat is due now."""
        self._hurried.set()

    async def keep_alive(self) -> None:
        """For ever: a heartbeat for all sessions, spread over the interval."""
        while True:
            hurried = self._hurried.is_set()
            self._hurried.clear()
            visits = list({_key(visit): visit for visit in self._visits()}.values())
            some = list(batches(visits, _BEATS_AT_A_TIME))
            pause_s = _HURRIED_PAUSE_S if hurried else self._heartbeat_interval_s / (len(some) or 2)
            for batch in some or [[]]:
                await self._beat(batch)
                heed_cancellation()
                if hurried:  # to its end, or a bus that comes and goes would keep the last ones from their turn
                    await asyncio.sleep(pause_s)
                elif await self._is_hurried(pause_s):
                    break

    async def _is_hurried(self, within_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._hurried.wait()
        return self._hurried.is_set()

    async def _register(self, visit: Visit, *, move: bool = False) -> None:
        """Begin the session, or renew it; under a fresh id when this one is another user's and must not be moved."""
        holder = self._holders.get(_key(visit), "")
        try:
            await self._presence.register(visit.uid, visit.session_id, move=move, holder=holder)
        except AlreadyExists:
            self.closed(visit)
            if not self._is_open(visit):
                self._holders.pop(_key(visit), None)
            visit.session_id = new_id()
            self.opened(visit)
            holder = self._holders[_key(visit)] = new_id()
            await self._presence.register(visit.uid, visit.session_id, move=False, holder=holder)

    def _is_open(self, visit: Visit) -> bool:
        """Whether a socket of this session is here: a page that reloads opens the new one before the old closes."""
        return _key(visit) in self._sockets

    async def _beat(self, visits: Sequence[Visit]) -> None:
        try:
            gone = await self._presence.keep_alive(map(_key, visits))
        except Exception as error:  # noqa: BLE001 - the next beat may do better
            self._beat_failed(error)
            return
        lost = [visit for visit in visits if _key(visit) in gone]
        for some in batches(lost, _REGISTRATIONS_AT_A_TIME):
            for outcome in await asyncio.gather(*map(self._register_anew, some), return_exceptions=True):
                if isinstance(outcome, Exception):
                    self._beat_failed(outcome)

    async def _register_anew(self, visit: Visit) -> None:
        if not self._is_open(visit):
            return
        await self._register(visit)
        if not self._is_open(visit):  # it closed meanwhile
            await self.end(visit)

    def _beat_failed(self, error: Exception) -> None:
        if not isinstance(error, Unavailable):  # `connections` reports the outage
            self._telemetry.log.error("task_failed", task="websockets: heartbeat", **where_raised(error))


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _key(visit: Visit) -> tuple[str, str]:
    return visit.uid, visit.session_id

"""`GET /ws`: a user's events as they happen (CONTRACT, WebSocket).

    async with WebSocketGateway(...) as gateway:      # heartbeats; looks after slow sockets
        app = Starlette(routes=gateway.routes(), middleware=[Middleware(TransportAccess)])
        ...
        await gateway.drain()

An open socket is a session of its user's: registered when it opens, kept alive by one heartbeat task for all sockets,
registered anew when Redis has lost it, ended when the last socket of that session closes.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self, TypeVar

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Receive, Scope, Send

from callboard.credentials import Credentials
from callboard.errors import AlreadyExists, Unavailable
from callboard.events.hub import Hub
from callboard.gateway.admission import Admission, Admitted, VerifyToken, Visit
from callboard.gateway.closing import REASONS, CloseCode, Gone, Refused
from callboard.gateway.connection import Connection, Limits
from callboard.gateway.socket import Socket
from callboard.gateway.tickets import Tickets
from callboard.lifecycle import Lifecycle
from callboard.messages import new_id
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from types import TracebackType

    from callboard.events.bus import Bus
    from callboard.fleet.listeners import Listeners
    from callboard.fleet.presence import Presence

_BEATS_AT_A_TIME = 200
_REGISTRATIONS_AT_A_TIME = 16
_RESYNCS_PER_S = 200
_MAX_ENTERING = 1_000
"""Sockets that have not shown a credential yet; each may take 5 s for it."""
_DRAIN_BATCH = 50
_DRAIN_WAIT_S = 3.0
T = TypeVar("T")

_STANDARD_CODES = (1000, 1001, 1005, 1006, 1009, 1011, 1012)


class WebSocketGateway:
    """The sockets of one replica."""

    def __init__(
        self,
        *,
        settings: Settings,
        credentials: Credentials,
        tickets: Tickets,
        hub: Hub,
        bus: Bus,
        presence: Presence,
        listeners: Listeners,
        lifecycle: Lifecycle,
        telemetry: Telemetry,
        verify_token: VerifyToken | None = None,
        limits: Limits | None = None,
        first_frame_timeout_s: float = 5.0,
        max_entering: int = _MAX_ENTERING,
        drain_spread_s: float = 3.0,
        tend_interval_s: float = 1.0,
        heartbeat_interval_s: float | None = None,
    ) -> None:
        """`verify_token` checks Firebase ID tokens; without it they are refused. It may be set later."""
        self._admission = Admission(
            settings, credentials, tickets, presence.owner_of, presence.user,
            first_frame_timeout_s=first_frame_timeout_s,
        )  # fmt: skip
        self._admission.verify_token = verify_token
        self._hub = hub
        self._bus = bus
        self._presence = presence
        self._listeners = listeners
        self._lifecycle = lifecycle
        self._telemetry = telemetry
        self._limits = limits or Limits()
        self._max_entering = max_entering
        self._drain_spread_s = drain_spread_s
        self._tend_interval_s = tend_interval_s
        self._heartbeat_interval_s = heartbeat_interval_s or settings.heartbeat_interval_s
        self._open: dict[Connection, Visit] = {}
        self._sessions: Counter[tuple[str, str]] = Counter()
        self._served = 0
        self._entering = 0
        self._nobody_served = asyncio.Event()
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connections(self) -> int:
        """How many sockets are open."""
        return len(self._open)

    @property
    def verify_token(self) -> VerifyToken | None:
        return self._admission.verify_token

    @verify_token.setter
    def verify_token(self, verify: VerifyToken | None) -> None:
        self._admission.verify_token = verify

    def routes(self) -> list[BaseRoute]:
        return [WebSocketRoute("/ws", self, name="ws")]

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._tend(), name="websockets: tend"),
            asyncio.create_task(self._beat(), name="websockets: heartbeat"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One WebSocket, from its handshake to its end."""
        socket = Socket(scope, receive, send)
        self._entering += 1
        try:
            await socket.accept()
            self._refuse_unless_ready()
            if self._entering > self._max_entering:
                raise Refused(CloseCode.UNAVAILABLE)
            admitted = await self._admission.admit(socket)
            self._refuse_unless_ready()
        except Gone:
            return
        except Refused as refusal:
            self._telemetry.log.info("ws_disconnect", code=int(refusal.code), reason=refusal.reason)
            self._count_closed(refusal.code)
            await socket.close(refusal.code, refusal.reason)
            return
        except Exception as error:  # noqa: BLE001 - logged; the client is told to come again
            self._telemetry.log.error("ws_failed", **where_raised(error))
            self._count_closed(CloseCode.UNAVAILABLE)
            await socket.close(CloseCode.UNAVAILABLE, CloseCode.UNAVAILABLE.reason)
            return
        finally:
            self._entering -= 1
        await self._serve(socket, admitted)

    def _refuse_unless_ready(self) -> None:
        if self._lifecycle.state == "starting":
            raise Refused(CloseCode.UNAVAILABLE)
        if self._draining or self._lifecycle.state != "ready":
            raise Refused(CloseCode.SHUTTING_DOWN)

    async def _serve(self, socket: Socket, admitted: Admitted) -> None:
        visit = admitted.visit
        connection = Connection(
            socket, visit.uid, self._hub, self._listeners, self._telemetry, self._limits,
            resync_delay_s=self._resync_delay_s, thread=visit.thread, expires_in_s=admitted.expires_in_s,
        )  # fmt: skip
        log = self._telemetry.log.bind(
            uid=self._telemetry.user(visit.uid), session=self._telemetry.user(visit.session_id)
        )
        began = time.monotonic()
        self._opened(connection, visit)
        self._served += 1
        self._nobody_served.clear()
        log.info("ws_connect", credential=admitted.credential)
        code = 1006
        try:
            with self._listeners.keeping_open(visit.uid, visit.thread):
                await self._begin_session(visit, move=admitted.acts_for_users)
                code = await connection.run(self._channels(visit))
        finally:
            self._closed(connection, visit)
            self._count_closed(code)
            log.info("ws_disconnect", code=code, duration_s=round(time.monotonic() - began, 1))
            try:
                await self._unregister(visit)
            finally:
                self._served -= 1
                if not self._served:
                    self._nobody_served.set()

    def _opened(self, connection: Connection, visit: Visit) -> None:
        self._open[connection] = visit
        self._sessions[_key(visit)] += 1
        self._telemetry.metrics.ws_connections.set(len(self._open))

    def _closed(self, connection: Connection, visit: Visit) -> None:
        del self._open[connection]
        self._uncount(visit)
        self._telemetry.metrics.ws_connections.set(len(self._open))

    def _uncount(self, visit: Visit) -> None:
        self._sessions[_key(visit)] -= 1
        if not self._sessions[_key(visit)]:
            del self._sessions[_key(visit)]

    def _channels(self, visit: Visit) -> list[str]:
        channels = self._bus.channels_of_user(visit.uid)
        if visit.thread is not None:
            channels.append(self._bus.channel_of("chat.message", visit.uid, visit.thread.place))
        return channels

    def _count_closed(self, code: int) -> None:
        known = code in _STANDARD_CODES or code in REASONS
        self._telemetry.metrics.ws_closed.labels(str(int(code)) if known else "other").inc()

    def _resync_delay_s(self) -> float:
        """After a gap all sockets need a sync at once; the source should not see them all in one moment."""
        return random.uniform(0, min(5.0, (len(self._open) - 1) / _RESYNCS_PER_S))  # noqa: S311 - jitter

    # -- presence

    async def _begin_session(self, visit: Visit, *, move: bool) -> None:
        try:
            await self._register(visit, move=move)
        except Unavailable:
            return  # `connections` reports the outage; the heartbeat registers what is not there

    async def _register(self, visit: Visit, *, move: bool = False) -> None:
        """Begin the session, or renew it; under a fresh id when this one is another user's and must not be moved."""
        try:
            await self._presence.register(visit.uid, visit.session_id, move=move)
        except AlreadyExists:
            self._uncount(visit)
            visit.session_id = new_id()
            self._sessions[_key(visit)] += 1
            await self._presence.register(visit.uid, visit.session_id, move=False)

    async def _unregister(self, visit: Visit) -> None:
        if self._is_open(visit):
            return
        try:
            await self._presence.unregister(visit.session_id, uid=visit.uid)
        except Unavailable:
            return  # the session ends by its TTL

    def _is_open(self, visit: Visit) -> bool:
        """Whether a socket of this session is here: a page that reloads opens the new one before the old closes."""
        return _key(visit) in self._sessions

    async def _beat(self) -> None:
        """Keep the sessions of all sockets alive, spread over the interval."""
        while True:
            visits = list({_key(visit): visit for visit in self._open.values()}.values())
            batches = list(_batches(visits, _BEATS_AT_A_TIME))
            for batch in batches:
                await self._keep_alive(batch)
                await asyncio.sleep(self._heartbeat_interval_s / len(batches))
            if not batches:
                await asyncio.sleep(self._heartbeat_interval_s / 2)

    async def _keep_alive(self, visits: list[Visit]) -> None:
        try:
            gone = await self._presence.keep_alive(map(_key, visits))
        except Exception as error:  # noqa: BLE001 - the next beat may do better
            self._beat_failed(error)
            return
        lost = [visit for visit in visits if _key(visit) in gone]
        for some in _batches(lost, _REGISTRATIONS_AT_A_TIME):
            for outcome in await asyncio.gather(*map(self._register_anew, some), return_exceptions=True):
                if isinstance(outcome, Exception):
                    self._beat_failed(outcome)

    async def _register_anew(self, visit: Visit) -> None:
        if not self._is_open(visit):
            return
        await self._register(visit)
        if not self._is_open(visit):  # it closed meanwhile
            await self._unregister(visit)

    def _beat_failed(self, error: Exception) -> None:
        if not isinstance(error, Unavailable):  # `connections` reports the outage
            self._telemetry.log.error("task_failed", task="websockets: heartbeat", **where_raised(error))

    # -- care

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(self._tend_interval_s)
            now = time.monotonic()
            for connection in list(self._open):
                connection.tend(now)

    async def drain(self) -> None:
        """Tell every socket to reconnect elsewhere, in batches over a few seconds, so that the others are not overrun.

        Those that do not react are dropped. Returns within `drain_spread_s` and a few seconds.
        """
        self._draining = True
        waiting = list(self._open)
        random.shuffle(waiting)
        batches = list(_batches(waiting, max(_DRAIN_BATCH, math.ceil(len(waiting) / 30))))
        for number, batch in enumerate(batches):
            if number:
                mean_s = self._drain_spread_s / len(batches)
                await asyncio.sleep(random.uniform(0.5 * mean_s, 1.5 * mean_s))  # noqa: S311 - jitter
            for connection in batch:
                connection.close(CloseCode.SHUTTING_DOWN)
        if self._served:
            try:
                await asyncio.wait_for(self._nobody_served.wait(), _DRAIN_WAIT_S)
            except TimeoutError:
                self._telemetry.log.warning("service_drain", stalled_sockets=len(self._open))
        for connection in list(self._open):
            connection.abort()


def _key(visit: Visit) -> tuple[str, str]:
    return visit.uid, visit.session_id


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))

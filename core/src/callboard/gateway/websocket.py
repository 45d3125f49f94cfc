"""`GET /ws`: a user's events as they happen (CONTRACT, WebSocket).

    async with WebSocketGateway(...) as gateway:      # heartbeats; looks after slow sockets
        app = Starlette(routes=gateway.routes(), middleware=[Middleware(TransportAccess)])
        ...
        await gateway.drain()

An open socket is a session of its user's (see `Sessions`), and has the chat thread open that it names.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Receive, Scope, Send

from callboard.credentials import Credentials
from callboard.errors import Unavailable
from callboard.events.hub import Hub
from callboard.gateway.admission import Admission, Admitted, VerifyToken, Visit
from callboard.gateway.closing import REASONS, CloseCode, Gone, Refused
from callboard.gateway.connection import Connection, Limits
from callboard.gateway.reviews import Reviews
from callboard.gateway.sessions import Sessions, batches
from callboard.gateway.socket import Socket
from callboard.gateway.tickets import Tickets
from callboard.identity import TokenVerifier
from callboard.lifecycle import Lifecycle
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from types import TracebackType

    from callboard.events.bus import Bus
    from callboard.fleet.listeners import Listeners
    from callboard.fleet.presence import Presence

_LOOKS_AT_A_TIME = 200
_RESYNCS_PER_S = 200
_MAX_ENTERING = 1_000
"""Sockets that have not shown a credential yet; each may take 5 s for it."""
_DRAIN_BATCH = 50
_DRAIN_WAIT_S = 3.0
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
        drain_spread_s: float | None = None,
        tend_interval_s: float = 1.0,
        heartbeat_interval_s: float | None = None,
    ) -> None:
        """`verify_token` checks ID tokens; without it, or a `verifier` that is set later, they are refused."""
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
        self._limits = limits or Limits(outbox_bytes=settings.outbox_bytes, outbox_age_s=settings.outbox_age_s)
        self._max_entering = max_entering
        self._max_open = settings.max_connections
        self._max_open_per_user = settings.max_connections_per_user
        self._max_age_s = settings.max_connection_age_s
        self._drain_spread_s = min(3.0, settings.drain_timeout_s * 0.1) if drain_spread_s is None else drain_spread_s
        self._tend_interval_s = tend_interval_s
        self._heartbeat_interval_s = heartbeat_interval_s or settings.heartbeat_interval_s
        self._open: dict[Connection, Visit] = {}
        self._open_by: Counter[str] = Counter()
        self._confined: dict[Connection, Visit] = {}
        self._sessions = Sessions(
            presence, telemetry, self._open.values, heartbeat_interval_s=self._heartbeat_interval_s
        )
        self._reviews = Reviews(telemetry, interval_s=self._heartbeat_interval_s)
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

    def check_tokens_with(self, verifier: TokenVerifier) -> None:
        """Have it check ID tokens, as sockets open and at each heartbeat."""
        self._admission.verify_token = verifier.verify
        self._reviews.verifier = verifier

    def keep_within(self, connections: int) -> None:
        """The process can hold so many in all: leave a tenth of them, or more, to calls and to health checks."""
        self._max_open = min(self._max_open, max(1, connections * 8 // 10))
        self._max_entering = min(self._max_entering, max(1, connections // 10))

    def routes(self) -> list[BaseRoute]:
        return [WebSocketRoute("/ws", self, name="ws")]

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._tend(), name="websockets: tend"),
            asyncio.create_task(self._sessions.keep_alive(), name="websockets: heartbeat"),
            asyncio.create_task(self._look_again(), name="websockets: spaces"),
            asyncio.create_task(self._reviews.run(), name="websockets: ID tokens"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_care()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One WebSocket, from its handshake to its end."""
        socket = Socket(scope, receive, send)
        self._entering += 1
        try:
            await socket.accept()
            self._refuse_unless_ready()
            if self._entering > self._max_entering:
                raise Refused(CloseCode.UNAVAILABLE, "Too many connections have shown no credential yet.")
            self._refuse_when_full()
            admitted = await self._admission.admit(socket)
            self._refuse_unless_ready()
            self._refuse_surplus(admitted.visit.uid)
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

    def _refuse_when_full(self) -> None:
        if len(self._open) >= self._max_open:
            raise Refused(CloseCode.UNAVAILABLE, "This replica has all the connections it takes.")

    def _refuse_surplus(self, uid: str) -> None:
        self._refuse_when_full()
        if self._open_by[uid] >= self._max_open_per_user:
            raise Refused(CloseCode.TOO_MANY)

    async def _serve(self, socket: Socket, admitted: Admitted) -> None:
        visit = admitted.visit
        connection = Connection(
            socket, visit.uid, self._hub, self._listeners, self._telemetry, self._limits,
            resync_delay_s=self._resync_delay_s, thread=visit.thread, expires_in_s=admitted.expires_in_s,
            ends_in_s=self._max_age_s * random.uniform(0.9, 1.1),  # noqa: S311 - what came together leaves spread
        )  # fmt: skip
        log = self._telemetry.log.bind(
            uid=self._telemetry.user(visit.uid), session=self._telemetry.user(visit.session_id)
        )
        began = time.monotonic()
        self._opened(connection, admitted)
        self._served += 1
        self._nobody_served.clear()
        log.info("ws_connect", credential=admitted.credential)
        code = 1006
        try:
            with self._listeners.keeping_open(visit.uid, visit.thread):
                await self._sessions.begin(visit, move=admitted.acts_for_users)
                code = await connection.run(self._channels(visit))
        finally:
            self._closed(connection, visit)
            self._count_closed(code)
            log.info("ws_disconnect", code=code, duration_s=round(time.monotonic() - began, 1))
            try:
                await self._sessions.end(visit)
            finally:
                self._served -= 1
                if not self._served:
                    self._nobody_served.set()

    def _opened(self, connection: Connection, admitted: Admitted) -> None:
        visit = self._open[connection] = admitted.visit
        self._open_by[visit.uid] += 1
        if visit.thread is not None and not admitted.acts_for_users:
            self._confined[connection] = visit
        self._reviews.opened(connection, admitted.token)
        self._sessions.opened(visit)
        self._telemetry.metrics.ws_connections.set(len(self._open))

    def _closed(self, connection: Connection, visit: Visit) -> None:
        del self._open[connection]
        self._open_by[visit.uid] -= 1
        if not self._open_by[visit.uid]:
            del self._open_by[visit.uid]
        self._confined.pop(connection, None)
        self._reviews.closed(connection)
        self._sessions.closed(visit)
        self._telemetry.metrics.ws_connections.set(len(self._open))

    def _channels(self, visit: Visit) -> list[str]:
        channels = self._bus.channels_of_user(visit.uid)
        if visit.thread is not None:
            channels.append(self._bus.channel_of("chat.message", visit.uid, visit.thread.place))
        return channels

    def _count_closed(self, code: int) -> None:
        known = code in _STANDARD_CODES or code in REASONS
        self._telemetry.metrics.ws_closed.labels(str(int(code)) if known else "other").inc()

    def hurry(self) -> None:
        """Redis is back: the sessions of all sockets are looked after now."""
        self._sessions.hurry()

    def _resync_delay_s(self) -> float:
        """After a gap all sockets need a sync at once; the source should not see them all in one moment."""
        return random.uniform(0, min(5.0, (len(self._open) - 1) / _RESYNCS_PER_S))  # noqa: S311 - jitter

    # -- care

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(self._tend_interval_s)
            now = time.monotonic()
            for connection in list(self._open):
                connection.tend(now)

    async def _look_again(self) -> None:
        """At each heartbeat: close what has a thread open in a space that its user may see no more."""
        while True:
            await asyncio.sleep(self._heartbeat_interval_s)
            for some in batches(list(self._confined.items()), _LOOKS_AT_A_TIME):
                try:
                    found = await self._presence.access({visit.uid for _, visit in some})
                except Unavailable:
                    break  # `connections` reports the outage
                except Exception as error:  # noqa: BLE001 - the next look may do better
                    self._telemetry.log.error("task_failed", task="websockets: spaces", **where_raised(error))
                    break
                for connection, visit in some:
                    if not found[visit.uid][1].may_see(visit.space_code):
                        connection.close(CloseCode.FORBIDDEN)

    async def _stop_care(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Tell every socket to reconnect elsewhere, in batches over a few seconds, so that the others are not overrun.

        Those that do not react are dropped. Returns within `drain_spread_s` and a few seconds.
        """
        self._draining = True
        await self._stop_care()
        waiting = list(self._open)
        random.shuffle(waiting)
        told = list(batches(waiting, max(_DRAIN_BATCH, math.ceil(len(waiting) / 30))))
        for number, batch in enumerate(told):
            if number:
                mean_s = self._drain_spread_s / len(told)
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

"""Publish and subscribe over Redis, with a watchdog.

The delivery promise. Redis diffuses and keeps nothing, so an event arrives

- in order per channel, as far as its publisher awaited one `publish` before the next;
- at most once: a PUBLISH is never sent again by itself, and events are lost while a replica has no connection;
- never silently lost: after every reconnect `on_gap` is called, once all subscriptions stand again, and before anything
  that the new connection brings. Whoever listens then reads the state anew (a sync), and is never wrong for longer than
  the connection was away.

A connection counts as good when the bus's own probe, a nonce published on a channel of this process the way events
are, comes back the way events do. A server that answers on a connection which no longer gets any traffic is so found
out, and so are a hung server and a black hole: within `probe_interval_s + probe_timeout_s` (10 s). A reset is seen at
once.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from redis.exceptions import RedisError

from callboard.clients import Reply, Subscriber, urgent
from callboard.connections import Connections, redis_errors
from callboard.errors import InvalidArgs, Unavailable
from callboard.events.subscriptions import Subscriptions
from callboard.messages import Event, check_identifier, encode, new_id, utc_now
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

MAX_EVENT_BYTES = 256 * 1024

_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
_MAX_TYPE_LABELS = 200
_MAX_EARLY_BYTES = 4 * 1024 * 1024
"""What waits for the gap before it to be told; more is dropped, and the sync makes up for it."""
_COMMANDS_PER_TURN = 1_000
_FAULTS_OF_REDIS = (RedisError, OSError, Unavailable)


class EventTooLarge(InvalidArgs):
    """An event has at most 256 KiB."""


class Silence(RedisError):
    """The probe did not come back."""


class Bus:
    """The event bus of one app. Set `sink` and `on_gap` before entering it; entering does not wait for Redis.

    `sink(channel, data)` gets every message of the subscribed channels, from the reading task: synchronous and fast.
    `on_gap()` says that messages may have been missed on any channel. `probed_at` (monotonic) and `probe_rtt_s` are the
    last proof that events arrive.
    """

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        telemetry: Telemetry,
        prefixes: Mapping[str, str],
        *,
        probe_interval_s: float = 5.0,
        probe_timeout_s: float = 5.0,
        subscribe_timeout_s: float = 3.0,
        backoff_s: tuple[float, float] = (0.1, 5.0),
    ) -> None:
        """`prefixes`: first segment of an event type → channel prefix; other types go to the user's channel."""
        self.sink: Callable[[str, bytes], None] = _nobody
        self.on_gap: Callable[[], None] = _nothing
        self.state: Literal["starting", "ok", "down"] = "starting"
        self.probed_at: float | None = None
        self.probe_rtt_s: float | None = None
        self._connections = connections
        self._telemetry = telemetry
        self._log = telemetry.log
        self._user_prefix = settings.channel_prefix
        self._prefixes = {"msg": settings.msg_channel_prefix, "chat": settings.chat_channel_prefix, **prefixes}
        self._msg_on_user_channel = settings.msg_on_user_channel
        self._probe_interval_s = probe_interval_s
        self._probe_timeout_s = probe_timeout_s
        self._subscribe_timeout_s = subscribe_timeout_s
        self._backoff_s = backoff_s
        self._probe_channel = f"callboard:probe:{settings.replica_name()}:{new_id()}"
        self._probe_nonce = b""
        self._echo: asyncio.Future[None] | None = None
        self._subscriptions = Subscriptions()
        self._ears: dict[str, Callable[[bytes], None]] = {}
        self._subscriber: Subscriber | None = None
        self._flush_is_due = False
        self._connected_before = False
        self._missed = False
        self._early: list[tuple[str, bytes]] | None = None
        self._early_bytes = 0
        self._sink_failed = False
        self._types: set[str] = set()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    # -- publishing ---------------------------------------------------------------------------------------------------

    def channel_of(self, type: str, uid: str, specific: tuple[str, ...] = ()) -> str:  # noqa: A002 - the wire's name
        """The channel of an event: prefix, uid, the rest of a finer channel. InvalidArgs for parts that do not fit."""
        return self._prefix_of(type) + ":".join(self._parts(uid, specific))

    def channels_of_user(self, uid: str) -> list[str]:
        """What a user's socket hears: a channel for each prefix but that of chats, whose threads a connection names."""
        check_identifier(uid)
        prefixes = [prefix for segment, prefix in self._prefixes.items() if segment != "chat"]
        return [prefix + uid for prefix in dict.fromkeys([self._user_prefix, *prefixes])]

    def prefix_in(self, channel: str) -> str:
        """The prefix that a channel begins with, the longest that does: what metrics may name. Empty for none."""
        prefixes = (self._user_prefix, *self._prefixes.values())
        return max((prefix for prefix in prefixes if channel.startswith(prefix)), key=len, default="")

    async def publish(self, event: Event, /, *, specific: tuple[str, ...] = ()) -> None:
        """Send an event on its channel; `id` and `timestamp` are filled in when they are empty.

        InvalidArgs: its type, uid or `specific` do not fit, or it is over 256 KiB. Unavailable: Redis is away.
        """
        parts = ":".join(self._parts(event.uid, specific))
        prefixes = [self._prefix_of(event.type)]
        if self._msg_on_user_channel and event.type.startswith("msg."):
            prefixes.append(self._user_prefix)
        data = self.encode(event)
        for prefix in dict.fromkeys(prefixes):
            await self.publish_raw(prefix + parts, data)
            self._telemetry.metrics.events_published.labels(prefix, self._type_label(event.type)).inc()
        if self._telemetry.debug:
            self._log.debug("publish", type=event.type, id=event.id, uid=self._telemetry.user(event.uid))

    def encode(self, event: Event) -> bytes:
        """An event as it goes to Redis and to sockets; `id` and `timestamp` are filled in when they are empty.

        InvalidArgs for its type, EventTooLarge (counted as dropped), or what its payload raises: not all is JSON.
        """
        prefix = self._prefix_of(event.type)
        event.id = event.id or new_id()
        event.timestamp = event.timestamp or utc_now()
        data = encode(event)
        if len(data) > MAX_EVENT_BYTES:
            self._telemetry.metrics.events_dropped.labels(prefix, "too_large").inc()
            raise EventTooLarge
        return data

    async def publish_raw(self, channel: str, data: bytes) -> None:
        """Send bytes on a channel, as they are. Unavailable: Redis cannot be reached."""
        with redis_errors(self._connections):
            await self._connections.publisher.publish(channel, data)

    def _prefix_of(self, type: str) -> str:  # noqa: A002
        if not _TYPE.fullmatch(type):
            raise InvalidArgs("An event's type looks like notif.job_updated.")
        return self._prefixes.get(type.partition(".")[0], self._user_prefix)

    def _parts(self, uid: str, specific: tuple[str, ...]) -> list[str]:
        return [check_identifier(uid), *(check_identifier(part, "specific") for part in specific)]

    def _type_label(self, type: str) -> str:  # noqa: A002
        # Types come from plugins' code; one that makes them up at run time must not fill the metrics' memory.
        if type not in self._types:
            if len(self._types) >= _MAX_TYPE_LABELS:
                return "other"
            self._types.add(type)
        return type

    # -- subscribing --------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: str) -> None:
        """Hear this exact channel; returns when Redis has confirmed it.

        Unavailable: it has not within `subscribe_timeout_s`. The wish counts all the same, from the moment of the call,
        and is fulfilled when Redis is back, before `on_gap`. Every call, one that failed or was cancelled included, is
        undone by one `unsubscribe`.
        """
        confirmed = self._subscriptions.want(channel)
        if confirmed is None:
            return
        self._flush_soon()
        done, _ = await asyncio.wait({confirmed}, timeout=self._subscribe_timeout_s)
        if not done:
            self._missed = True
            raise Unavailable("The event bus cannot subscribe now.")
        if confirmed.result() is not None:
            raise Unavailable("Redis refuses this subscription.")

    async def unsubscribe(self, channel: str) -> None:
        """Take one `subscribe` back; KeyError when there is none. Does not wait for Redis."""
        self._subscriptions.unwant(channel)
        self._flush_soon()

    def hear(self, channel: str, ear: Callable[[bytes], None]) -> None:
        """Have what comes on a channel that is no user's given to `ear`, as to `sink`, from when Redis is there on."""
        self._ears[channel] = ear
        self._subscriptions.want(channel)
        self._flush_soon()

    def unhear(self, channel: str) -> None:
        """Take `hear` back; KeyError when there is none."""
        del self._ears[channel]
        self._subscriptions.unwant(channel)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._subscriber is not None and not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._subscriber is None:
            return
        commands = self._subscriptions.commands(_COMMANDS_PER_TURN)
        if commands:
            self._subscriber.send(*commands)
        if self._subscriptions.any_due:
            self._flush_soon()

    # -- the connection -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._subscriptions.want(self._probe_channel)
        self._task = asyncio.create_task(self._run(), name="event bus")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.state = "down"

    async def _run(self) -> None:
        failures = 0
        while not self._closing:
            began = time.monotonic()
            try:
                await self._connect_and_serve()
            except* Exception as group:  # noqa: BLE001 - whatever it was is logged, and the bus lives on
                self._went_down(group)
            proved = self.probed_at is not None and self.probed_at > began
            if self._closing:  # a task group that fails while it is cancelled forgets the cancellation
                return
            failures = 1 if proved else failures + 1
            first, longest = self._backoff_s
            await asyncio.sleep(random.uniform(0, min(longest, first * 2 ** min(failures, 16))))  # noqa: S311 - jitter

    async def _connect_and_serve(self) -> None:
        await self._connections.find_mode()
        subscriber = self._connections.subscriber()
        try:
            with redis_errors(self._connections, proves=False):
                await subscriber.connect()
            if self._connected_before:
                self._telemetry.metrics.bus_rebuilds.inc()
            self._connected_before = True
            self._subscriber = subscriber
            self._subscriptions.begin()
            self._early = [] if self._missed else None
            self._sink_failed = False
            self._flush()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(subscriber), name="event bus: read")
                tasks.create_task(self._watch(), name="event bus: watch")
        finally:
            # A session that ends has left something out, even if it was never proved.
            self._missed = self._missed or self._subscriber is not None
            self._subscriber = None
            self._subscriptions.end()
            for channel, _ in self._take_early():
                self._count_dropped(channel, "gap")
            await subscriber.close()

    async def _read(self, subscriber: Subscriber) -> None:
        while True:
            for reply in await subscriber.receive():
                if isinstance(reply, list) and reply[0] == b"message":
                    self._deliver(reply[1].decode(), reply[2])
                else:
                    self._take_answer(reply)

    def _deliver(self, channel: str, data: bytes) -> None:
        if channel == self._probe_channel:
            if self._echo is not None and not self._echo.done() and data == self._probe_nonce:
                self._echo.set_result(None)
        elif self._early is None:
            self._hand_on(channel, data)
        elif self._early_bytes + len(data) > _MAX_EARLY_BYTES:
            self._count_dropped(channel, "gap")
        else:
            self._early.append((channel, data))
            self._early_bytes += len(data)

    def _hand_on(self, channel: str, data: bytes) -> None:
        try:
            if (ear := self._ears.get(channel)) is not None:
                ear(data)
            else:
                self.sink(channel, data)
        except Exception:  # noqa: BLE001 - one message that cannot be delivered must not cost all sockets theirs
            self._count_dropped(channel, "error")
            if not self._sink_failed:
                self._sink_failed = True
                self._log.exception("event_undelivered")

    def _take_early(self) -> list[tuple[str, bytes]]:
        early, self._early, self._early_bytes = self._early or [], None, 0
        return early

    def _count_dropped(self, channel: str, reason: str) -> None:
        self._telemetry.metrics.events_dropped.labels(self.prefix_in(channel), reason).inc()

    def _take_answer(self, reply: Reply) -> None:
        refused = self._subscriptions.answered(reply)
        if refused is not None:
            self._log.error("bus_refused", reason=str(reply), prefix=refused.split(":")[0])

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._probe_timeout_s):
                    await self._subscriptions.restored.wait()
                    rtt_s = await self._probe()
            except TimeoutError:
                self._telemetry.metrics.bus_probe_failures.inc()
                self._connections.distrust()
                raise Silence(f"no answer to the probe within {self._probe_timeout_s:g} s") from None
            self._is_proved(rtt_s)
            await asyncio.sleep(self._probe_interval_s)

    async def _probe(self) -> float:
        self._echo = asyncio.get_running_loop().create_future()
        self._probe_nonce = new_id().encode()
        while True:
            sent_at = time.monotonic()
            before = urgent.set(True)
            try:
                await self.publish_raw(self._probe_channel, self._probe_nonce)
            except Unavailable:  # the publisher's trouble alone need not cost the subscriptions: until the time-out
                await asyncio.sleep(self._probe_timeout_s / 10)
                continue
            finally:
                urgent.reset(before)
            await self._echo
            return time.monotonic() - sent_at

    def _is_proved(self, rtt_s: float) -> None:
        self.probed_at = time.monotonic()
        self.probe_rtt_s = rtt_s
        self._telemetry.metrics.bus_probe_rtt.set(rtt_s)
        if self.state != "ok":
            self.state = "ok"
            self._telemetry.metrics.bus_up.set(1)
            self._log.info("bus_up", rtt_ms=round(rtt_s * 1000, 1), mode=self._connections.mode)
        if self._missed:
            self._missed = False
            self._log.warning("bus_gap")
            self._telemetry.metrics.bus_gaps.inc()
            self.on_gap()
        for channel, data in self._take_early():
            self._hand_on(channel, data)

    def _went_down(self, group: BaseExceptionGroup[Exception]) -> None:
        error = group.exceptions[0]
        if self.state != "down":
            self.state = "down"
            self._telemetry.metrics.bus_up.set(0)
            if isinstance(error, Unavailable):
                told: dict[str, Any] = {"reason": self._connections.last_error}
            elif isinstance(error, _FAULTS_OF_REDIS):
                told = {"reason": self._connections.explain(error)}
            else:
                told = where_raised(error)
            self._log.warning("bus_down", **told)


def _nobody(channel: str, data: bytes) -> None:
    pass


def _nothing() -> None:
    pass

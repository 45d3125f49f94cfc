"""This replica's sockets, by channel: each message of the bus becomes one frame and goes to every outbox once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from callboard.errors import Unavailable
from callboard.events.bus import Bus
from callboard.events.outbox import Frame, Outbox, timestamp
from callboard.telemetry import Telemetry

_MAX_FENCES = 100_000
_MAX_MESSAGES = 10_000
"""The last `msg.*` events, which may come on two channels within moments."""


class _Head(msgspec.Struct):
    """What the hub must know of an event; foreign publishers may have put anything there."""

    id: Any = None
    fence: Any = None
    listener: Any = None
    uid: Any = None
    type: Any = None
    timestamp: Any = None
    as_of: Any = None


class _Room:
    """The outboxes of one channel."""

    def __init__(self, label: str, telemetry: Telemetry) -> None:
        self.label = label
        self.outboxes: dict[Outbox, None] = {}
        self.delivered = telemetry.metrics.events_delivered.labels(label)


class Hub:
    """Set as the bus's `sink` and `on_gap`: `bus.sink, bus.on_gap = hub.deliver, hub.gap`."""

    def __init__(self, bus: Bus, telemetry: Telemetry, *, max_fences: int = _MAX_FENCES) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._decoder = msgspec.json.Decoder(_Head)
        self._rooms: dict[str, _Room] = {}
        self._fences: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self._max_fences = max_fences
        self._messages: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def join(self, outbox: Outbox, channels: Iterable[str]) -> None:
        """Have the outbox get what arrives on these channels; returns when Redis has confirmed the subscriptions.

        Unavailable: it has not. The outbox has joined all the same: once the bus is back, `gap` tells it to sync.
        Every `join`, a failed or cancelled one included, is undone by `leave`.
        """
        outcomes = await asyncio.gather(*(self._enter(outbox, each) for each in channels), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in sorted(failures, key=lambda failure: isinstance(failure, Unavailable)):
            raise failure

    async def _enter(self, outbox: Outbox, channel: str) -> None:
        room = self._rooms.get(channel)
        if room is None:
            room = self._rooms[channel] = _Room(self._bus.prefix_in(channel), self._telemetry)
        room.outboxes[outbox] = None
        outbox.channels.append(channel)
        await self._bus.subscribe(channel)

    async def leave(self, outbox: Outbox) -> None:
        """Take the outbox out of all its channels."""
        while outbox.channels:
            channel = outbox.channels.pop()
            room = self._rooms[channel]
            del room.outboxes[outbox]
            if not room.outboxes:
                del self._rooms[channel]
            await self._bus.unsubscribe(channel)

    def deliver(self, channel: str, data: bytes) -> None:
        """Put a message into the outboxes of its channel. What is not a JSON object in UTF-8 is dropped and counted."""
        room = self._rooms.get(channel)
        if room is None:
            return
        try:
            head = self._decoder.decode(data)
            text = data.decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._count_dropped(room.label, "not_json")
            return
        segment = head.type.partition(".")[0] if isinstance(head.type, str) else ""
        listener = head.listener if isinstance(head.listener, str) else ""
        # A lease is one listener's: its neighbours' tokens, of events that begin alike, are of other leases.
        lease = (head.uid, listener, "" if listener else segment)
        if type(head.fence) is int and isinstance(head.uid, str) and self._is_stale(lease, head.fence):
            self._count_dropped(room.label, "fenced")
            return
        if segment == "msg" and isinstance(head.id, str) and self._is_double(channel, room.label, head.id):
            self._count_dropped(room.label, "double")
            return
        sent_at = timestamp(head.timestamp)
        frame = Frame(
            text, len(data), label=room.label, segment=segment, listener=listener,
            is_sync=head.as_of is not None, sent_at=sent_at,
        )  # fmt: skip
        delivered = 0
        for outbox in room.outboxes:
            if (refused := outbox.push(frame)) is None:
                delivered += 1
            else:
                self._count_dropped(room.label, refused)
        room.delivered.inc(delivered)
        if sent_at is not None:
            lag_s = (datetime.now(UTC) - sent_at).total_seconds()
            self._telemetry.metrics.event_lag.observe(max(0.0, lag_s))

    def gap(self) -> None:
        """Messages may have been missed on any channel: the next thing every socket gets is a sync."""
        for room in self._rooms.values():
            for outbox in room.outboxes:
                outbox.mark_gap()

    def count_lost(self, frames: Iterable[Frame], reason: str) -> None:
        """Account for events that were in an outbox and will not be written; a pong, which has no label, is none."""
        for frame in frames:
            if frame.label:
                self._count_dropped(frame.label, reason)

    def _is_stale(self, key: tuple[str, str, str], fence: int) -> bool:
        """Whether a later owner of the same lease has been heard; the least recently heard are forgotten.

        The key: the user, and the listener or, where an event names none, the first segment of its type.
        """
        known = self._fences.get(key)
        if known is not None and fence < known:
            return True
        self._fences[key] = fence
        self._fences.move_to_end(key)
        if len(self._fences) > self._max_fences:
            self._fences.popitem(last=False)
        return False

    def _is_double(self, channel: str, prefix: str, id: str) -> bool:  # noqa: A002 - the wire's name
        """Whether it came on another of the user's channels (`LISTENERS_MSG_ON_USER_CHANNEL`): sockets hear both."""
        first = self._messages.setdefault((channel.removeprefix(prefix), id), channel)
        if len(self._messages) > _MAX_MESSAGES:
            self._messages.popitem(last=False)
        return first != channel

    def _count_dropped(self, label: str, reason: str) -> None:
        self._telemetry.metrics.events_dropped.labels(label, reason).inc()

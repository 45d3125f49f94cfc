"""How the streams of a database are doing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamStats:
    """The streams at one moment.

    `connected`: those that hold an up-to-date state; `backing_off`: those that wait to be reopened; `silent_s`: since
    the last byte on any of them; `last_event_s`: since the last put or patch; `last_end`: how the last of them ended.
    """

    streams: int
    connected: int
    backing_off: int
    reconnects: int
    silent_s: float | None
    last_event_s: float | None
    last_end: str | None


class Counters:
    """What the streams of a database write down. Times are the loop's."""

    __slots__ = ("backing_off", "connected", "heard_at", "last_end", "last_event_at", "reconnects", "streams")

    def __init__(self) -> None:
        self.streams = 0
        self.connected = 0
        self.backing_off = 0
        self.reconnects = 0
        self.heard_at: float | None = None
        self.last_event_at: float | None = None
        self.last_end: str | None = None

    def stats(self, now: float) -> StreamStats:
        return StreamStats(
            streams=self.streams,
            connected=self.connected,
            backing_off=self.backing_off,
            reconnects=self.reconnects,
            silent_s=None if self.heard_at is None else now - self.heard_at,
            last_event_s=None if self.last_event_at is None else now - self.last_event_at,
            last_end=self.last_end,
        )

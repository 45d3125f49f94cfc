"""What waits to be written to one socket, bounded by bytes and by age."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

MAX_BYTES = 1024 * 1024
MAX_AGE_S = 20.0


class Frame:
    """One event, decoded and encoded once for all the sockets that get it."""

    __slots__ = ("born", "label", "segment", "sent_at", "size", "text")

    def __init__(
        self, text: str, size: int, *, label: str = "", segment: str = "", sent_at: datetime | None = None
    ) -> None:
        self.text = text
        self.size = size
        self.label = label
        """The channel's prefix."""
        self.segment = segment
        """First segment of the event's type."""
        self.sent_at = sent_at
        """The event's own timestamp."""
        self.born = time.monotonic()


class Outbox:
    """The frames of one socket, in order, one reader.

    It begins by needing a sync, and needs one again after a gap: the reader then calls `hold`, fetches and writes the
    sync, and calls `release`; what arrives meanwhile stays in the box. `on_overflow` is called once, when the box is
    full; from then on it takes nothing.
    """

    def __init__(
        self,
        uid: str,
        on_overflow: Callable[[], None],
        *,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self.uid = uid
        self.channels: list[str] = []
        self.needs_sync = True
        self._on_overflow = on_overflow
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._held = True
        self._released_at = 0.0
        self._overflowed = False
        self._stirred = asyncio.Event()

    def push(self, frame: Frame) -> bool:
        """Take a frame; False when the box is full, and the socket is to be closed."""
        if self._overflowed:
            return False
        # A single frame larger than the box may pass when nothing waits before it.
        if (self._frames and self._bytes + frame.size > self._max_bytes) or self.is_late(frame.born):
            self._overflowed = True
            self._on_overflow()
            return False
        self._frames.append(frame)
        self._bytes += frame.size
        self._stirred.set()
        return True

    def is_late(self, now: float) -> bool:
        """Whether the oldest frame has waited too long for its reader, not counting the time of a sync."""
        if self._held or not self._frames:
            return False
        return now - max(self._frames[0].born, self._released_at) > self._max_age_s

    def mark_gap(self) -> None:
        """Events may have been missed: the next thing to be written is a sync."""
        self.needs_sync = True
        self._stirred.set()

    def hold(self) -> None:
        self.needs_sync = False
        self._held = True

    def release(self, as_of: Mapping[str, datetime]) -> list[Frame]:
        """Let the frames go, but not those which the sync covers: `as_of` is its read time by first type segment.

        Returns the frames that are covered.
        """
        covered = [f for f in self._frames if f.sent_at and f.segment in as_of and f.sent_at < as_of[f.segment]]
        if covered:
            gone = set(map(id, covered))
            self._frames = deque(frame for frame in self._frames if id(frame) not in gone)
            self._bytes = sum(frame.size for frame in self._frames)
        self._held = False
        self._released_at = time.monotonic()
        return covered

    async def wait(self) -> None:
        """Return once there is a frame, or a sync is needed."""
        while not self._frames and not self.needs_sync:
            self._stirred.clear()
            await self._stirred.wait()

    def first(self) -> Frame | None:
        return self._frames[0] if self._frames else None

    def pop(self) -> None:
        """The first frame is out."""
        self._bytes -= self._frames.popleft().size

    def empty(self) -> list[Frame]:
        """Give up what is left."""
        left = list(self._frames)
        self._frames.clear()
        self._bytes = 0
        return left


def timestamp(text: object) -> datetime | None:
    """An event's `timestamp` or `as_of` as a time, or None when it is none."""
    if not isinstance(text, str):
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)

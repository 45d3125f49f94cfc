"""What waits to be written to one socket, bounded by bytes and by age."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

MAX_BYTES = 1024 * 1024
MAX_AGE_S = 20.0


class Frame:
    """One event, decoded and encoded once for all the sockets that get it."""

    __slots__ = ("born", "is_sync", "label", "listener", "segment", "sent_at", "size", "text")

    def __init__(
        self,
        text: str,
        size: int,
        *,
        label: str = "",
        segment: str = "",
        listener: str = "",
        is_sync: bool = False,
        sent_at: datetime | None = None,
    ) -> None:
        self.text = text
        self.size = size
        self.label = label
        """The channel's prefix."""
        self.segment = segment
        """First segment of the event's type."""
        self.listener = listener
        """The listener that sent it, if the event names one."""
        self.is_sync = is_sync
        self.sent_at = sent_at
        """The event's own timestamp."""
        self.born = time.monotonic()


class Outbox:
    """The frames of one socket, one reader; what a listener sends leaves in order, and after that listener's sync.

    It begins by needing a sync, and needs one again after a gap: from then on it keeps what arrives. `begin` says which
    listeners are being read; `synced` puts in what was read of one and lets go what waited for it; `failed` says that
    one could not be read, and until `hold`, when it is read again, its deltas are left out: that sync will cover them.
    An event that names no listener waits for those whose syncs' types have its first segment.

    `on_overflow` is called once, when the box is full; from then on it takes nothing. What the methods return are the
    frames that will not be written, being covered by a sync.
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
        self._on_overflow = on_overflow
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._gap = asyncio.Event()
        self._gap.set()
        self._held: dict[str, frozenset[str] | None] = {}
        self._muted: set[str] = set()
        self._read_of: dict[str, datetime] = {}
        self._read_at: dict[str, datetime] = {}
        self._current: Frame | None = None
        self._syncs: deque[Frame] = deque()
        self._ready: deque[tuple[float, Frame]] = deque()
        self._waiting: list[Frame] = []
        self._bytes = 0
        self._overflowed = False
        self._stirred = asyncio.Event()

    @property
    def needs_sync(self) -> bool:
        return self._gap.is_set()

    # -- what comes in

    def push(self, frame: Frame, *, waits: bool = True) -> Literal["too_slow", "covered"] | None:
        """Take a frame; else why not. `too_slow`: the box is full, and the socket is to be closed.

        `waits` false: it is no event, and need not wait for syncs.
        """
        if self._overflowed:
            return "too_slow"
        if frame.listener in self._muted:
            if not frame.is_sync:
                return "covered"
            self._muted.discard(frame.listener)
        # A single frame larger than the box may pass when nothing waits before it.
        if (self._bytes and self._bytes + frame.size > self._max_bytes) or self.is_late(frame.born):
            self._overflowed = True
            self._on_overflow()
            return "too_slow"
        self._bytes += frame.size
        if waits and self._waits(frame):
            self._waiting.append(frame)
        else:
            self._ready.append((frame.born, frame))
            self._stirred.set()
        return None

    def is_late(self, now: float) -> bool:
        """Whether the oldest frame has waited too long for its reader, not counting the time of a sync."""
        return bool(self._ready) and now - self._ready[0][0] > self._max_age_s

    # -- syncs

    def mark_gap(self) -> None:
        """Events may have been missed: the next thing to be written is a sync."""
        self._gap.set()
        self._syncs.clear()
        self._waiting = [*(frame for _, frame in self._ready), *self._waiting]
        self._ready.clear()

    async def gap(self) -> None:
        """Return once a sync is needed."""
        await self._gap.wait()

    def begin(self, listeners: Mapping[str, frozenset[str] | None]) -> None:
        """These listeners are read from now on: each with the first segments of its syncs' types, None for unknown."""
        self._gap.clear()
        self._held = dict(listeners)
        self._muted.clear()
        self._read_of.clear()
        self._read_at.clear()
        self._settle()

    def synced(self, listener: str, texts: Iterable[str], read_at: Mapping[str, datetime]) -> list[Frame]:
        """Put in a listener's syncs; `read_at` says when its source was read, by first segment of their types."""
        self._held.pop(listener, None)
        self._syncs.extend(Frame(text, 0, listener=listener, is_sync=True) for text in texts)
        if read_at:
            self._read_of[listener] = min(read_at.values())
        for segment, at in read_at.items():
            self._read_at[segment] = min(at, self._read_at.get(segment, at))
        return self._settle()

    def failed(self, listener: str) -> list[Frame]:
        """The listener could not be read: the others' events need not wait for it."""
        self._held.pop(listener, None)
        self._muted.add(listener)
        return self._settle()

    def hold(self, listener: str, segments: frozenset[str] | None) -> None:
        """The listener is read again, alone."""
        self._muted.discard(listener)
        self._held[listener] = segments
        self._waiting += [frame for _, frame in self._ready if frame.listener == listener]
        self._ready = deque(each for each in self._ready if each[1].listener != listener)

    def _waits(self, frame: Frame) -> bool:
        if self._gap.is_set():
            return True
        if frame.listener:
            return frame.listener in self._held
        return any(segments is None or frame.segment in segments for segments in self._held.values())

    def _is_covered(self, frame: Frame) -> bool:
        if frame.listener in self._muted:
            if not frame.is_sync:
                return True
            self._muted.discard(frame.listener)  # its own process has read it: what follows has its base
        read_at = self._read_of.get(frame.listener) if frame.listener else self._read_at.get(frame.segment)
        return frame.sent_at is not None and read_at is not None and frame.sent_at < read_at

    def _settle(self) -> list[Frame]:
        """Let go what need not wait any more."""
        covered, waiting, now = [], [], time.monotonic()
        for frame in self._waiting:
            if self._waits(frame):
                waiting.append(frame)
            elif self._is_covered(frame):
                covered.append(frame)
            else:
                self._ready.append((now, frame))
        self._waiting = waiting
        self._bytes -= sum(frame.size for frame in covered)
        self._stirred.set()
        return covered

    # -- what goes out

    async def wait(self) -> None:
        """Return once there is something to write."""
        while self.first() is None:
            self._stirred.clear()
            await self._stirred.wait()

    def first(self) -> Frame | None:
        """What to write next; the same until `pop`."""
        if self._current is None:
            if self._syncs:
                self._current = self._syncs.popleft()
            elif self._ready:
                self._current = self._ready.popleft()[1]
        return self._current

    def pop(self) -> None:
        """The first frame is out."""
        if self._current is not None:
            self._bytes -= self._current.size
            self._current = None

    def empty(self) -> list[Frame]:
        """Give up what is left; syncs, which were this socket's alone, are not told."""
        left = [self._current] if self._current is not None and self._current.size else []
        left += [*(frame for _, frame in self._ready), *self._waiting]
        self._current, self._bytes, self._waiting = None, 0, []
        self._syncs.clear()
        self._ready.clear()
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

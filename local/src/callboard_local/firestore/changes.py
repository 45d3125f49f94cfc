"""The recent changes of a database, so that a listener can resume where it stopped."""

import collections
import secrets
import struct
from collections.abc import Iterable

_TOKEN = struct.Struct(">QQ")
_KEPT = 20_000


class ChangeLog:
    """Which documents changed when, for the last 20,000 changes of this server's life."""

    def __init__(self) -> None:
        # A token from before a restart, or of another database, means nothing here.
        self._epoch = secrets.randbits(64)
        self._entries: collections.deque[tuple[int, str]] = collections.deque()
        self._forgotten_until = 0

    def add(self, time: int, paths: Iterable[str]) -> None:
        self._entries.extend((time, path) for path in paths)
        while len(self._entries) > _KEPT:
            self._forgotten_until = self._entries.popleft()[0]

    def token(self, time: int) -> bytes:
        """The resume token of a snapshot at `time` (microseconds)."""
        return _TOKEN.pack(self._epoch, time)

    def since(self, token: bytes) -> set[str] | None:
        """The documents changed after the snapshot a token belongs to; None when that is no longer known."""
        if len(token) != _TOKEN.size:
            return None
        epoch, time = _TOKEN.unpack(token)
        if epoch != self._epoch or time < self._forgotten_until:
            return None
        changed = set()
        for changed_at, path in reversed(self._entries):
            if changed_at <= time:
                break
            changed.add(path)
        return changed

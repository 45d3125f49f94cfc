"""Server-sent events out of the chunks of a body.

Lines end with LF, CRLF or CR and nothing else: JSON may hold U+2028 and U+0085 as they are, where Python's `splitlines`
(and httpx's `iter_lines`) would cut. Bytes stay bytes, so that what is not UTF-8 is an error and no replacement
character. The work is linear in the bytes, whatever their chunks, and an event is bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """Its name, and its data lines joined with LF."""

    name: str
    data: bytes


class EventTooLargeError(Exception):
    """An event has more bytes than are taken in."""


class EventReader:
    """Feed it what arrives; it keeps at most `max_bytes` of an event that has not ended."""

    __slots__ = ("_after_cr", "_data", "_line", "_max_bytes", "_name", "_size", "_started")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._after_cr = False
        self._started = False

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that end in this chunk. EventTooLargeError."""
        events: list[ServerEvent] = []
        start = 1 if self._after_cr and chunk.startswith(b"\n") else 0
        self._after_cr = chunk.endswith(b"\r")
        for end in _LINE_END.finditer(chunk, start):
            self._keep(chunk[start : end.start()])
            start = end.end()
            line = b"".join(self._line)
            self._line.clear()
            if not line:
                if self._data:
                    events.append(ServerEvent(self._name.decode(errors="replace"), b"\n".join(self._data)))
                self._name, self._size = b"", 0
                self._data = []
            else:
                self._field(line)
        self._keep(chunk[start:])
        return events

    def _keep(self, part: bytes) -> None:
        if not part:
            return
        self._size += len(part)
        if self._size > self._max_bytes:
            raise EventTooLargeError
        self._line.append(part)

    def _field(self, line: bytes) -> None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value
        elif name == b"data":
            self._data.append(value)

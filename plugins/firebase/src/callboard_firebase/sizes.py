"""Texts cut to a size, so that no document can make an event larger than the bus carries (256 KiB)."""

from __future__ import annotations

import msgspec

MARK = "…"
"""What a text that was cut ends with."""

_MARK_BYTES = len(MARK.encode())
_LARGEST_BYTES = 6  # of one character in JSON: \u0000


def shorten(text: str, max_bytes: int) -> str:
    """The text, or as much of its beginning as fits into `max_bytes` (3 or more) of JSON, quotes not counted, with `…`.

    `shorten("a" * 9, 6)` is `"aaa…"`: the mark has three bytes.
    """
    if len(text) * _LARGEST_BYTES <= max_bytes or (len(text) <= max_bytes and json_size(text) <= max_bytes):
        return text
    room = max_bytes - _MARK_BYTES
    kept = text[:room]
    while (size := json_size(kept)) > room:
        kept = kept[: len(kept) * room // size]
    return kept + MARK


def json_size(text: str) -> int:
    """Bytes of a text in JSON, without its quotes."""
    return len(msgspec.json.encode(text)) - 2

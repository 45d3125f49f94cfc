"""Keys that sort by the time they were made, as Firebase's own clients make them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

_ALPHABET = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_RANDOM_BITS = 72


class PushIds:
    """20 characters each: 8 of milliseconds, 12 of chance. Those of one maker ascend, whatever the clock does."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last_ms = -1
        self._chance = 0

    def next(self) -> str:
        """A key that sorts after all before it."""
        now_ms = int(self._clock() * 1000)
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            # Its top bit is left out, so that a millisecond's successors always fit.
            self._chance = secrets.randbits(_RANDOM_BITS - 1)
        else:
            self._chance += 1
        return _text(self._last_ms, 8) + _text(self._chance, 12)


def _text(number: int, length: int) -> str:
    return "".join(_ALPHABET[(number >> 6 * place) & 63] for place in reversed(range(length)))

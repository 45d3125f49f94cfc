"""How long to wait before asking again."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

_SPREAD_SHARE = 0.6


class Backoff:
    """Full-jitter exponential back-off, with a ceiling on attempts per window.

    The n-th delay is uniform in 0 … min(cap_s, base_s x 2^n). Jitter alone can draw several short delays in a row, and
    success resets the exponent; so whatever was drawn, no window of `window_s` seconds holds more than `per_window`
    attempts. Once four tenths of them are used, the others are spread over what is left of the window: used up early,
    they would leave a server that is back unasked for most of a minute.
    """

    def __init__(
        self,
        *,
        base_s: float,
        cap_s: float,
        per_window: int = 10,
        window_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._per_window = per_window
        self._window_s = window_s
        self._attempts: deque[float] = deque(maxlen=per_window)
        self._failures = 0
        self._clock = clock
        self._jitter = jitter

    def delay(self, cap_s: float | None = None) -> float:
        """Count one more failure: the seconds to wait before the next attempt. `cap_s`: a lower cap for this one."""
        now = self._clock()
        # 2**63 is beyond any cap; it keeps the power from growing without bound.
        ceiling = min(self._cap_s, cap_s or self._cap_s, self._base_s * 2.0 ** min(self._failures, 63))
        self._failures += 1
        floor = self._floor(now)
        delay = floor + max(0.0, ceiling - floor) * self._jitter()
        self._attempts.append(now + delay)
        return delay

    def _floor(self, now: float) -> float:
        """The shortest delay that leaves as much for each attempt of the window that is still allowed."""
        recent = [at for at in self._attempts if at > now - self._window_s]
        left = self._per_window - len(recent)
        if left > self._per_window * _SPREAD_SHARE:
            return 0.0
        return max(0.0, recent[0] + self._window_s - now) / (left + 1)

    def reset(self) -> None:
        """The last attempt succeeded: the next delay is a short one."""
        self._failures = 0

    def clear(self) -> None:
        """Forget every attempt, those that the ceiling counts too."""
        self._failures = 0
        self._attempts.clear()

    def saturate(self) -> None:
        """The server asked for less: the next delays are drawn up to the cap."""
        self._failures = 63

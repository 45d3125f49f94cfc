"""What a watch of a node's newest children means for consumers: which children to tell, or that a sync is due.

The database tells of children that enter and leave the watched window, which is not the same as messages that come
and go: one that is added pushes the oldest out, one that is deleted lets an older one in.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from callboard import event_id
from callboard.messages import encode_canonical, utc_now
from callboard_firebase.items import SYNC_LIMIT
from callboard_firebase_realtime.places import key_order

BURST = 50
"""Changes in one batch beyond which they are not told one by one: a sync is."""
SYNC_COST = 5
"""What a sync counts for among events: it may be as large as a hundred of them."""


class Told(NamedTuple):
    """A child that is new or has changed. `revision` names the change, alike on every replica that sees it.

    It is made of the content before and after, for the database has no versions. A change that happens again (`read`
    set, taken back, set) is another one: within a minute it is counted, and the minute is in the name. So a replica
    that sees a change on the other side of the minute tells it once more, and none is taken for an earlier one.
    """

    key: str
    value: Any
    revision: str


class Window:
    """One watch's. `is_visible` says of a child's value whether the consumer is shown it."""

    def __init__(self, is_visible: Callable[[Any], bool], limit: int = SYNC_LIMIT) -> None:
        self._is_visible = is_visible
        self._limit = limit
        self._overflows = False
        """Whether there may be children that are older than the window."""
        self._order: list[str] = []
        self._shown: dict[str, str] = {}
        self._minute = ""
        self._revised: Counter[str] = Counter()

    def read(self, changed: Iterable[str], children: Mapping[str, Any], *, initial: bool = False) -> list[Told] | None:
        """What to tell, in the order of keys; None when only a sync of `children` can.

        `changed`: the keys of those that were added, modified or removed. A sync is due for the first batch, a
        burst, a message that is not to be seen any more, and when one that was deleted makes room: what is older was
        out of sight, and may have changed or gone.
        """
        self._overflows = len(children) >= self._limit or (self._overflows and not initial)
        changed, before = list(changed), self._order
        self._order = sorted(children, key=key_order) if initial else _reordered(before, changed, children)
        touched = [key for key in changed if key in children or not self._has_left(key)]
        if initial or len(touched) > BURST or self._needs_sync(touched, children, before):
            self._begin(children)
            return None
        news = sorted((key for key in touched if self._sees(children, key)), key=key_order)
        return [Told(key, children[key], self._revise(key, children[key])) for key in news]

    def visible(self) -> list[str]:
        """The keys of what is shown, in order."""
        return [key for key in self._order if key in self._shown]

    def _has_left(self, key: str) -> bool:
        """Whether a child that is gone was pushed out of a full window: it is where it was, and stays as shown.

        The oldest of exactly `limit` that is deleted in the very batch in which one is added looks the same.
        """
        left = len(self._order) >= self._limit and key_order(key) < key_order(self._order[0])
        if left:
            self._shown.pop(key, None)
        return left

    def _needs_sync(self, touched: list[str], children: Mapping[str, Any], before: list[str]) -> bool:
        if len(children) < self._limit <= len(before):
            return True
        for key in touched:
            if key in self._shown:
                if not self._sees(children, key):
                    return True
            elif self._overflows and key in children and before and key_order(key) < key_order(before[0]):
                return True
        return False

    def _sees(self, children: Mapping[str, Any], key: str) -> bool:
        return key in children and self._is_visible(children[key])

    def _begin(self, children: Mapping[str, Any]) -> None:
        self._shown = {key: _digest(children[key]) for key in self._order if self._is_visible(children[key])}

    def _revise(self, key: str, value: Any) -> str:
        before, after, now = self._shown.get(key, ""), _digest(value), minute()
        self._shown[key] = after
        if now != self._minute:
            self._minute = now
            self._revised.clear()
        change = event_id(key, before, after, now)
        self._revised[change] += 1
        return event_id(change, self._revised[change])


def _reordered(before: list[str], changed: Iterable[str], children: Mapping[str, Any]) -> list[str]:
    """The children in order, from what they were before: cheaper than to sort 500 for one that came."""
    known = set(before)
    order = [key for key in before if key in children]
    for key in changed:
        if key in children and key not in known:
            insort(order, key, key=key_order)
    return order


def change_id(path: str, kind: str, told: Iterable[Told]) -> str:
    """The id of an event about these children: the same on every replica that has seen the same happen to them."""
    return event_id(path, kind, *(one.revision for one in told))


def minute() -> str:
    return utc_now()[:16]


class Pace:
    """Lets `burst` events through at once and then `per_s` a second: what comes faster is read together, not queued.

    The watch keeps the latest state of each child for whoever is slow. So 500 messages in a second are first told one
    by one, then as a burst: few events, and in the end the right state.
    """

    def __init__(self, burst: int = 20, per_s: float = 20.0, longest_s: float = 1.0) -> None:
        self._burst = burst
        self._per_s = per_s
        self._longest_s = longest_s
        self._allowed = float(burst)
        self._at = -math.inf

    async def turn(self, events: int) -> None:
        """Return when, after these events, the next batch may be read."""
        if (delay_s := self.delay_s(events, time.monotonic())) > 0:
            await asyncio.sleep(delay_s)

    def delay_s(self, events: int, now: float) -> float:
        """How long to wait, in seconds, after events that were told at this time."""
        allowed = min(self._burst, self._allowed + (now - self._at) * self._per_s) - events
        self._allowed, self._at = max(allowed, -self._longest_s * self._per_s), now
        return max(0.0, -self._allowed / self._per_s)


def _digest(value: Any) -> str:
    return event_id(encode_canonical(value))

"""What a watch of a node's newest children means for consumers: which children to tell, or that a sync is due.

The database tells of children that enter and leave the watched window, which is not the same as messages that come
and go: one that is added pushes the oldest out, one that is deleted lets an older one in.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from callboard import event_id
from callboard.messages import encode_canonical, utc_now
from callboard_firebase import BURST
from callboard_firebase.items import SYNC_LIMIT
from callboard_firebase_realtime.places import key_order


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

    def read(
        self,
        changed: Iterable[str],
        children: Mapping[str, Any],
        *,
        passed: Collection[str] = (),
        initial: bool = False,
    ) -> list[Told] | None:
        """What to tell, in the order of keys; None when only a sync of `children` can.

        `changed`: the keys of those that were added, modified or removed; `passed`: those of them that others may have
        read in a state that was never told. A sync is due for the first batch, a burst, a message that is not to be
        seen any more, or was seen by others alone, and when one that was deleted makes room: what is older was out of
        sight, and may have changed or gone.
        """
        self._overflows = len(children) >= self._limit or (self._overflows and not initial)
        changed, before = list(changed), self._order
        self._order = sorted(children, key=key_order) if initial else _reordered(before, changed, children)
        touched = [key for key in changed if key in children or not self._has_left(key)]
        unseen = any(key in passed and not self._sees(children, key) for key in touched)
        if initial or unseen or len(touched) > BURST or self._needs_sync(touched, children, before):
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


def _digest(value: Any) -> str:
    return event_id(encode_canonical(value))

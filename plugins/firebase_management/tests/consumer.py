"""A consumer that keeps a user's notifications as `docs/delivery.md` says, and one that forgets a rule of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from callboard import Event


class Consumer:
    """`items` by document, from syncs and deltas. `heeds_as_of` false: it applies deltas older than its last sync."""

    def __init__(self, *, heeds_as_of: bool = True) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.took: list[str] = []
        """The types of what it was given."""
        self._heeds_as_of = heeds_as_of
        self._as_of: datetime | None = None
        self._ids: set[str] = set()

    def take(self, event: Event) -> None:
        self.took.append(event.type)
        if event.id in self._ids:
            return
        self._ids.add(event.id)
        if event.type == "notif.sync":
            assert event.as_of is not None
            self.items = {item["doc_id"]: dict(item) for item in event.payload["notifications"]}
            self._as_of = datetime.fromisoformat(event.as_of)
            return
        if self._heeds_as_of and self._as_of and datetime.fromisoformat(event.timestamp) < self._as_of:
            return
        if event.type == "notif.remove":
            self.items.pop(event.payload["doc_id"], None)
        else:
            self.items[event.payload["doc_id"]] = dict(event.payload)

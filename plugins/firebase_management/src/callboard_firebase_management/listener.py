"""The listener behind `notif.sync`, `notif.add`, `notif.update` and `notif.remove`.

It watches the unread notifications of one online user. A notification that becomes read, is deleted, or moves to a
company the user may not see, is a `notif.remove`. A burst (more than `BURST` changes at once) is told by one
`notif.sync` instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any

from callboard import Event, Listener, User, event_id, listener
from callboard.messages import utc_now
from callboard_firebase import BURST, Batch, Change, Pace, run_query
from callboard_firebase.items import SYNC_LIMIT, company_of, fitting, wire_time
from callboard_firebase_management.items import Newest, notification_item
from callboard_firebase_management.notifications import unread
from callboard_firebase_management.store import FirestoreService


@listener(name="notifications", begins_with_sync=True)
class NotificationListener(Listener[FirestoreService]):
    """Begins with the sync of the first batch, so nothing can fall between it and the deltas that follow.

    The time of a delta is Firestore's, as the `as_of` of a sync is: a consumer can tell which came first. Ids depend on
    the document and its version alone, so two replicas that tell of one change tell it with one id.
    """

    def __init__(self) -> None:
        self._shown: set[str] = set()

    async def snapshot(self, user: User) -> list[Event]:
        """Read the unread notifications once: one `notif.sync`, with the newest (`SYNC_LIMIT`, `SYNC_BYTES`)."""
        newest = Newest(SYNC_LIMIT, user)
        read_time: datetime | None = None
        query = unread(self.service.notifications(user.uid))
        async with aclosing(run_query(self.service.client, query)) as found:
            async for one in found:
                read_time = one.read_time
                if one.document is not None:
                    newest.add(one.document.id, one.document.data, one.document.update_time)
        return [_sync(user, newest, read_time)]

    async def changes(self, user: User) -> AsyncIterator[Event]:
        """`notif.sync`, then deltas, or a sync for a burst of them, until it is closed. Raises what ended the watch."""
        query = unread(self.service.notifications(user.uid))
        pace = Pace()
        async with self.service.firebase.listen.watch(query) as batches:
            async for batch in batches:
                for event in self._events(user, batch):
                    yield event
                if not batch.initial:
                    await pace.told(len(batch.changes))

    def _events(self, user: User, batch: Batch) -> list[Event]:
        if batch.initial:
            return [self._whole(user, batch)]
        deltas = [delta for change in batch.changes if (delta := self._delta(user, change, batch.read_time))]
        return deltas if len(deltas) <= BURST else [self._whole(user, batch)]

    def _whole(self, user: User, batch: Batch) -> Event:
        newest = Newest(SYNC_LIMIT, user)
        self._shown.clear()
        for document in batch.documents.values():
            if newest.add(document.id, document.data, document.update_time):
                self._shown.add(document.id)
        return _sync(user, newest, batch.read_time)

    def _delta(self, user: User, change: Change, read_time: datetime) -> Event | None:
        document = change.document
        was_shown = document.id in self._shown
        payload: dict[str, Any]
        if change.kind != "removed" and user.may_see(company_of(document.data)):
            self._shown.add(document.id)
            kind = "notif.update" if was_shown else "notif.add"
            payload = {**notification_item(document.id, document.data, document.update_time)}
        elif was_shown or change.several:
            # Also one that came into sight and left it untold: a consumer that joined meanwhile has it in its own sync.
            self._shown.discard(document.id)
            kind, payload = "notif.remove", {"doc_id": document.id}
        else:
            return None
        return Event(
            id=event_id(document.path, document.update_time.isoformat(), kind),
            type=kind,
            uid=user.uid,
            timestamp=wire_time(read_time),
            payload=payload,
        )


def _sync(user: User, newest: Newest, read_time: datetime | None) -> Event:
    as_of = wire_time(read_time) if read_time else None
    return Event(
        id=event_id(f"clients/{user.uid}/notifications", read_time, "notif.sync"),
        type="notif.sync",
        uid=user.uid,
        payload={"notifications": fitting(newest.items()), "count": newest.total, "timestamp": as_of or utc_now()},
        as_of=as_of,
    )

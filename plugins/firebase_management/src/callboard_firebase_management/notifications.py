"""A user's notifications: the documents of `clients/{uid}/notifications`; those whose `read` is false are unread."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from google.cloud.firestore import AsyncCollectionReference, AsyncQuery, FieldFilter, Query

from callboard import method
from callboard_firebase import Document, run_query, segment, translated
from callboard_firebase_management.items import Item, Newest
from callboard_firebase_management.store import FirestoreService

EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
"""The first time that Firestore knows."""

IS_READ = FieldFilter("read", "==", True)

Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000)]


class Notifications(FirestoreService):
    """Gets and deletes. The items are those of `notif.sync` (CONTRACT, Events), whatever the user's companies."""

    @method(effect="read")
    async def get_notifications(self, user_id: str, read: bool | None = None, limit: Limit = 100) -> list[Item]:
        """The newest notifications of a user, newest first, at most `limit` (1 to 1,000).

        `read` true or false: only those that are. With `read` false every unread notification is read from Firestore
        and sorted here, those without a `timestamp` by the time of their last write.

        Otherwise Firestore sorts by `timestamp`, which finds only notifications that have this field. Where fewer than
        `limit` have it, those without are read as well (when there are more than `limit` in all, the first by id), and
        take their place by the time of their last write; **where `limit` or more have it, those without are not
        found**. No index has to be made. Of texts as timestamps, Firestore's order decides which belong to the newest
        `limit`, and it compares them as texts: those of one form, in UTC, are compared rightly.
        """
        collection = self.notifications(user_id)
        if read is False:
            return await self._newest_unread(collection, limit)
        by_time = collection.order_by("timestamp", direction=Query.DESCENDING)
        page = await self._page(by_time, read, limit)
        if len(page) == limit and not _has_time(page[0]):
            # Firestore sorts all texts above all times, so the newest of these may be missing.
            page += await self._page(by_time.where(filter=FieldFilter("timestamp", ">=", EARLIEST)), read, limit)
        elif len(page) < limit:
            page += await self._without_time(collection, read, limit, len(page))
        newest = Newest(limit)
        for document in {document.id: document for document in page}.values():
            newest.add(document.id, document.data, document.update_time)
        return list(newest.items())

    @method(effect="read")
    async def get_unread_notifications(self, user_id: str, limit: Limit = 50) -> list[Item]:
        """The newest unread notifications of a user, newest first: `get_notifications` with `read` false."""
        return await self._newest_unread(self.notifications(user_id), limit)

    @method(effect="write", retry_safe=True)
    async def delete_notifications(self, user_id: str, job_id: str | None = None) -> int:
        """Delete a user's notifications, or those of one job, up to 200 at a time; returns how many.

        Of one job: the document with this name, and those whose field `job_id` has this value. Notifications added
        meanwhile may survive.
        """
        collection = self.notifications(user_id)
        if job_id is None:
            return await self.delete_found(collection.order_by("__name__"))
        named = collection.document(segment(job_id, "job_id"))
        deleted = await self.delete_found(
            collection.where(filter=FieldFilter("job_id", "==", job_id)).order_by("__name__")
        )
        return deleted + await self.delete_one(named)

    async def _page(self, query: AsyncQuery, read: bool | None, limit: int) -> list[Document]:
        """The first `limit` that a query finds, of those that are read if so wished."""
        page: list[Document] = []
        # Read and unread ones are told apart here: a filter in the query would need an index of its own.
        async with aclosing(run_query(self.client, query if read else query.limit(limit))) as found:
            async for one in found:
                if one.document is not None and (read is None or one.document.data.get("read") is True):
                    page.append(one.document)
                    if len(page) == limit:
                        break
        return page

    async def _without_time(
        self, collection: AsyncCollectionReference, read: bool | None, limit: int, with_time: int
    ) -> list[Document]:
        """Among others, those that the index by time does not have; read only when there are any."""
        everything = collection.order_by("__name__") if read is None else collection.where(filter=IS_READ)
        count: Any = everything.count()  # Google's annotation says the class
        with translated():
            counted = await count.get()
        return await self._page(everything, read, limit) if int(counted[0][0].value) > with_time else []

    async def _newest_unread(self, collection: AsyncCollectionReference, limit: int) -> list[Item]:
        newest = Newest(limit)
        async with aclosing(run_query(self.client, unread(collection))) as found:
            async for one in found:
                if one.document is not None:
                    newest.add(one.document.id, one.document.data, one.document.update_time)
        return list(newest.items())


def unread(collection: AsyncCollectionReference) -> AsyncQuery:
    """The unread ones of a collection of notifications."""
    return collection.where(filter=FieldFilter("read", "==", False))


def _has_time(document: Document) -> bool:
    return isinstance(document.data.get("timestamp"), datetime)

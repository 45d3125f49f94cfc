"""The consumer's end of a watch: the latest state, and what the consumer has not seen of it yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from copy import copy
from datetime import datetime
from types import MappingProxyType

from callboard.errors import CallError
from callboard_firebase.listen.documents import Batch, Change, Document

_NOTHING: Mapping[str, Document] = MappingProxyType({})


class Watch(AsyncIterator[Batch]):
    """Yields batches to one task. Nothing is queued: a consumer that is slow finds the latest state of each document.

    What is pending is, per document, the state the consumer last saw, and whether it has changed more than once.
    Iteration raises the CallError that ended the watch, once every batch before it is taken.
    """

    __slots__ = ("_delivered", "_failure", "_read_time", "_unseen", "_waiter", "documents")

    def __init__(self) -> None:
        self.documents: Mapping[str, Document] = _NOTHING
        self._unseen: dict[str, _Unseen] | None = None  # an empty dict each would be a tenth of an idle watch
        self._read_time: datetime | None = None
        self._delivered = False
        self._failure: CallError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def update(self, documents: Mapping[str, Document], touched: Iterable[str], read_time: datetime) -> None:
        """A new consistent state, which the caller no longer alters; `touched` names the documents that differ."""
        if self._delivered:
            for path in touched:
                self._note(path, self.documents.get(path))
        self.documents = documents
        self._read_time = read_time
        if self._unseen or not self._delivered:
            self._wake()

    def _note(self, path: str, before: Document | None) -> None:
        if self._unseen is None:
            self._unseen = {}
        unseen = self._unseen.get(path)
        if unseen is None:
            self._unseen[path] = _Unseen(before)
        else:
            unseen.several = True
            unseen.last = before or unseen.last

    def fail(self, failure: CallError) -> None:
        """End the watch with an error."""
        self._failure = self._failure or failure
        self._wake()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Batch:
        if self._waiter is not None:
            raise RuntimeError("a watch is read by one task only")
        while True:
            batch = self._take()
            if batch is not None:
                return batch
            if self._failure is not None:
                # A copy: the same failure can end many watches, each in a task of its own.
                raise copy(self._failure) from self._failure.__cause__
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _take(self) -> Batch | None:
        if self._read_time is None:
            return None
        if not self._delivered:
            self._delivered = True
            added = tuple(Change("added", document) for document in self.documents.values())
            return Batch(True, added, self.documents, self._read_time)
        unseen, self._unseen = self._unseen or {}, None
        changes = tuple(
            change for path, one in unseen.items() if (change := one.change_to(self.documents.get(path))) is not None
        )
        return Batch(False, changes, self.documents, self._read_time) if changes else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Unseen:
    """A document that has changed since the consumer's last batch: what it was then, and last was, if it was at all."""

    __slots__ = ("before", "last", "several")

    def __init__(self, before: Document | None) -> None:
        self.before = self.last = before
        self.several = False

    def change_to(self, after: Document | None) -> Change | None:
        if after is None:
            # What came and went unseen is told too: others may have read it meanwhile.
            gone = self.before or self.last
            return None if gone is None else Change("removed", gone, self.several)
        if self.before is None:
            return Change("added", after, self.several)
        return None if self.before.update_time == after.update_time else Change("modified", after, self.several)

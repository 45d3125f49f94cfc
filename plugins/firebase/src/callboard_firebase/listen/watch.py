"""The consumer's end of a watch: the latest state, and what the consumer has not seen of it yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType

from callboard_firebase.latest import Latest, Unseen
from callboard_firebase.listen.documents import Batch, Change, Document

_NOTHING: Mapping[str, Document] = MappingProxyType({})


class Watch(Latest[Batch]):
    """What is pending is, per document, the state the consumer last saw, and whether it has changed more than once."""

    __slots__ = ("_delivered", "_read_time", "_unseen", "documents")

    def __init__(self) -> None:
        super().__init__()
        self.documents: Mapping[str, Document] = _NOTHING
        self._unseen: dict[str, Unseen[Document]] | None = None  # an empty dict each would be a tenth of an idle watch
        self._read_time: datetime | None = None
        self._delivered = False

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
        if (unseen := self._unseen.get(path)) is not None:
            unseen.note(before)
        else:
            self._unseen[path] = Unseen(before)

    def _take(self) -> Batch | None:
        if self._read_time is None:
            return None
        if not self._delivered:
            self._delivered = True
            added = tuple(Change("added", document) for document in self.documents.values())
            return Batch(True, added, self.documents, self._read_time)
        unseen, self._unseen = self._unseen or {}, None
        changes = tuple(
            change for path, one in unseen.items() if (change := _change(one, self.documents.get(path))) is not None
        )
        return Batch(False, changes, self.documents, self._read_time) if changes else None


def _change(unseen: Unseen[Document], after: Document | None) -> Change | None:
    if after is None:
        gone = unseen.before or unseen.last
        return None if gone is None else Change("removed", gone, unseen.several)
    if unseen.before is None:
        return Change("added", after, unseen.several)
    same = unseen.before.update_time == after.update_time
    return None if same else Change("modified", after, unseen.several)

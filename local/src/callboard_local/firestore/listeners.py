"""Who follows what: finds, for each commit, the few targets that its documents can concern."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .targets import DocumentsTarget, ListenTarget, QueryTarget
from .views import is_below

if TYPE_CHECKING:
    from .database import Database
    from .streams import ListenStream

Entry = tuple["ListenStream", ListenTarget]


class Listeners:
    """The targets of all streams of a database, found by document, by collection, or by collection id."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._by_document: dict[str, set[Entry]] = defaultdict(set)
        self._by_collection: dict[str, set[Entry]] = defaultdict(set)
        self._by_group: dict[str, set[Entry]] = defaultdict(set)

    def add(self, stream: "ListenStream", target: ListenTarget) -> None:
        for index, key in self._places(target):
            index[key].add((stream, target))

    def discard(self, stream: "ListenStream", target: ListenTarget) -> None:
        for index, key in self._places(target):
            index[key].discard((stream, target))
            if not index[key]:
                del index[key]

    def publish(self, paths: Iterable[str]) -> None:
        """Tell every stream concerned that the documents at these paths have changed, all in one commit."""
        touched: dict[ListenStream, dict[ListenTarget, list[str]]] = {}
        for path in paths:
            for stream, target in self._concerned(path):
                touched.setdefault(stream, {}).setdefault(target, []).append(path)
        for stream, targets in touched.items():
            stream.advance(targets)

    def _places(self, target: ListenTarget) -> Iterator[tuple[dict[str, set[Entry]], str]]:
        if isinstance(target, DocumentsTarget):
            for path in target.paths:
                yield self._by_document, path
        elif isinstance(target, QueryTarget):
            collection = target.query.collection_path
            if collection is not None:
                yield self._by_collection, collection
            else:
                yield self._by_group, target.query.collection_id

    def _concerned(self, path: str) -> Iterator[Entry]:
        collection = path.rpartition("/")[0]
        yield from self._by_document.get(path, ())
        yield from self._by_collection.get(collection, ())
        for collection_id in (collection.rpartition("/")[2], ""):
            for stream, target in self._by_group.get(collection_id, ()):
                if isinstance(target, QueryTarget) and is_below(collection, target.query.parent):
                    yield stream, target

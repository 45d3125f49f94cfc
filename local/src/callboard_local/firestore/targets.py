"""The two kinds of listen targets: named documents, and the result of a query."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .errors import InvalidArgumentError
from .messages import Document, Target
from .queries import CompiledQuery
from .views import View

if TYPE_CHECKING:
    from .database import Database

Update = tuple[str, Document | None, bool]
"""A path, its document (None: there is none), and whether that now belongs to the target."""


class ListenTarget(ABC):
    """A set of documents that one stream follows under an id of its choice."""

    def __init__(self, target_id: int) -> None:
        self.id = target_id

    @abstractmethod
    def enter(self, view: View) -> Iterator[Update]:
        """Everything the target consists of; from here on, `advance` tells the changes."""

    @abstractmethod
    def advance(self, view: View, paths: Iterable[str]) -> Iterator[Update]:
        """What the changes of the documents at `paths` mean for this target."""

    def resume(self, view: View, paths: Iterable[str]) -> Iterator[Update] | None:
        """Like `enter`, for a client that knows all but the changes at `paths`; None when it must start anew."""
        return None


class DocumentsTarget(ListenTarget):
    """Documents by their paths; a missing one is reported as deleted."""

    def __init__(self, target_id: int, paths: Iterable[str]) -> None:
        super().__init__(target_id)
        self.paths = list(dict.fromkeys(paths))

    def enter(self, view: View) -> Iterator[Update]:
        return self.advance(view, self.paths)

    def advance(self, view: View, paths: Iterable[str]) -> Iterator[Update]:
        for path in paths:
            document = view.get(path)
            yield path, document, document is not None

    def resume(self, view: View, paths: Iterable[str]) -> Iterator[Update]:
        return self.advance(view, set(paths).intersection(self.paths))


class QueryTarget(ListenTarget):
    """The result of a query."""

    def __init__(self, target_id: int, query: CompiledQuery, root: str) -> None:
        super().__init__(target_id)
        self.query = query
        self._root = root
        self._members: dict[str, Document] = {}

    def enter(self, view: View) -> Iterator[Update]:
        self._members = self._run(view)
        for path, document in self._members.items():
            yield path, self.query.project(document), True

    def advance(self, view: View, paths: Iterable[str]) -> Iterator[Update]:
        if self.query.windowed:
            yield from self._rerun(view)
            return
        for path in paths:
            document = view.get(path)
            if document is not None and self.query.matches(path, document):
                self._members[path] = document
                yield path, self.query.project(document), True
            elif self._members.pop(path, None) is not None:
                yield path, document, False

    def resume(self, view: View, paths: Iterable[str]) -> Iterator[Update] | None:
        if self.query.windowed:
            return None
        self._members = self._run(view)
        return self._resumed(view, paths)

    def _resumed(self, view: View, paths: Iterable[str]) -> Iterator[Update]:
        for path in paths:
            member = self._members.get(path)
            if member is not None:
                yield path, self.query.project(member), True
            else:
                yield path, view.get(path), False

    def _rerun(self, view: View) -> Iterator[Update]:
        before, self._members = self._members, self._run(view)
        for path in before.keys() - self._members.keys():
            yield path, view.get(path), False
        for path, document in self._members.items():
            if before.get(path) is not document:
                yield path, self.query.project(document), True

    def _run(self, view: View) -> dict[str, Document]:
        start = len(self._root) + 1
        return {document.name[start:]: document for document in self.query.run(view)}


def compile_target(database: "Database", target_id: int, target: Target) -> ListenTarget:
    """The target that a request asks for; raises `FirestoreError` when it makes no sense."""
    match target.WhichOneof("target_type"):
        case "documents":
            return DocumentsTarget(target_id, map(database.document_path, target.documents.documents))
        case "query":
            parent = database.parent_path(target.query.parent)
            return QueryTarget(target_id, CompiledQuery(parent, target.query.structured_query), database.root)
    raise InvalidArgumentError("target has no type")

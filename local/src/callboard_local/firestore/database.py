"""One database: its documents, its clock, and the one place where they change."""

import time
from collections.abc import Mapping, Sequence

from google.rpc.status_pb2 import Status

from . import names
from .changes import ChangeLog
from .errors import FirestoreError, InvalidArgumentError
from .journal import Journal
from .listeners import Listeners
from .messages import BatchWriteResponse, CommitResponse, Document, Write, WriteResult
from .transactions import Transactions
from .views import Collection, View
from .writes import apply_write, written_path, written_paths


class Database:
    """The database called `name` (`projects/p/databases/d`). No method awaits: each is one step for all others."""

    def __init__(self, name: str, journal: Journal | None = None) -> None:
        self.name = name
        self.root = f"{name}/documents"
        self._collections: dict[str, Collection] = {}
        self._shared: set[str] = set()
        self._journal = journal
        self.view = View(self._collections)
        """The documents as they are now."""
        self._time = 0  # of the last commit or read, in microseconds since 1970; clocks may step back, this may not
        self.changes = ChangeLog()
        self.transactions = Transactions(self.snapshot)
        self.listeners = Listeners(self)

    def document_path(self, name: str) -> str:
        return names.document_path(self.name, name)

    def parent_path(self, name: str) -> str:
        return names.parent_path(self.name, name)

    def now(self) -> int:
        """The read time of something that happens now, in microseconds: what is committed later has a later time."""
        self._time = max(time.time_ns() // 1000, self._time)
        return self._time

    def snapshot(self) -> View:
        """The documents as they are now, for ever: a collection is copied when it next changes."""
        self._shared = set(self._collections)
        return View(dict(self._collections))

    def commit(self, writes: Sequence[Write], transaction_id: bytes = b"") -> CommitResponse:
        """Apply all writes in order, or none of them."""
        if transaction_id:
            transaction = self.transactions.close(transaction_id)
            if transaction.read_only and writes:
                raise InvalidArgumentError("Cannot modify entities in a read-only transaction.")
            if not transaction.read_only:
                transaction.check_unchanged(self.view)
        commit_time = self._next_time()
        staged, results = self._stage(writes, commit_time)
        self._apply(staged, commit_time)
        response = CommitResponse(write_results=results)
        response.commit_time.FromMicroseconds(commit_time)
        return response

    def batch_write(self, writes: Sequence[Write]) -> BatchWriteResponse:
        """Apply every write by itself; some may fail."""
        paths = [written_path(self.name, write) for write in writes]
        if len(set(paths)) < len(paths):
            raise InvalidArgumentError("the same document cannot be written more than once in a single request")
        response = BatchWriteResponse()
        for write in writes:
            try:
                result = self.commit([write]).write_results[0]
            except FirestoreError as error:
                response.write_results.append(WriteResult())
                response.status.append(Status(code=error.code.value[0], message=str(error)))
            else:
                response.write_results.append(result)
                response.status.append(Status())
        return response

    def load(self, path: str, document: Document) -> None:
        """Take a stored document in, as it was."""
        self._put({path: document})
        self._time = max(self._time, document.update_time.ToMicroseconds())

    def _next_time(self) -> int:
        # Strictly increasing: clients take equal update times for the same version.
        return max(time.time_ns() // 1000, self._time + 1)

    def _stage(self, writes: Sequence[Write], commit_time: int) -> tuple[dict[str, Document | None], list[WriteResult]]:
        staged: dict[str, Document | None] = {}
        results = []
        for path, write in zip(written_paths(self.name, writes), writes, strict=True):
            current = staged[path] if path in staged else self.view.get(path)
            document, transformed = apply_write(write, path, current, commit_time)
            staged[path] = document
            result = WriteResult(transform_results=transformed)
            if document is not None:
                result.update_time.CopyFrom(document.update_time)
            results.append(result)
        return staged, results

    def _apply(self, staged: Mapping[str, Document | None], commit_time: int) -> None:
        changes = {path: new for path, new in staged.items() if new is not self.view.get(path)}
        if self._journal is not None:
            self._journal.write(self.name, changes)
        self._put(changes)
        self._time = commit_time
        self.changes.add(commit_time, changes)
        self.listeners.publish(changes)

    def _put(self, changes: Mapping[str, Document | None]) -> None:
        for path, document in changes.items():
            collection_path, _, document_id = path.rpartition("/")
            collection = self._own_collection(collection_path)
            if document is None:
                del collection[document_id]
            else:
                collection[document_id] = document
            if not collection:
                del self._collections[collection_path]

    def _own_collection(self, path: str) -> Collection:
        if path in self._shared:
            self._shared.discard(path)
            self._collections[path] = dict(self._collections[path])
        return self._collections.setdefault(path, {})

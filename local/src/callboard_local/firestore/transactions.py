"""Optimistic transactions: read a snapshot, remember what was read, compare at the commit."""

import functools
import secrets
import time
from collections.abc import Callable

from .errors import AbortedError, InvalidArgumentError
from .messages import Document
from .queries import CompiledQuery
from .views import View

_LIFETIME_S = 270


class Transaction:
    """What one transaction has read, from one snapshot of the database."""

    def __init__(self, snapshot: Callable[[], View], read_only: bool) -> None:
        self._snapshot = snapshot
        self.read_only = read_only
        self.began_at = time.monotonic()
        self._documents: dict[str, Document | None] = {}
        self._queries: list[tuple[CompiledQuery, list[Document]]] = []

    @functools.cached_property
    def view(self) -> View:
        """The database at the first read."""
        return self._snapshot()

    def get(self, path: str) -> Document | None:
        self._documents[path] = document = self.view.get(path)
        return document

    def run(self, query: CompiledQuery) -> list[Document]:
        documents = query.run(self.view)
        self._queries.append((query, documents))
        return documents

    def check_unchanged(self, now: View) -> None:
        """Raise `AbortedError` when a document or a query's result is no longer what was read."""
        # Documents are replaced, never changed: the same object is the same version.
        stale = any(now.get(path) is not document for path, document in self._documents.items())
        if stale or any(not _same(query.run(now), read) for query, read in self._queries):
            raise AbortedError(
                "Aborted due to cross-transaction contention. This occurs when multiple transactions attempt to "
                "access the same data, requiring Firestore to abort at least one in order to enforce "
                "serializability."
            )


class Transactions:
    """The open transactions of a database by their id, and for a while the ids of the closed ones."""

    def __init__(self, snapshot: Callable[[], View]) -> None:
        self._snapshot = snapshot
        self._open: dict[bytes, Transaction] = {}
        self._closed: dict[bytes, float] = {}

    def begin(self, *, read_only: bool) -> bytes:
        self._drop_expired()
        transaction_id = secrets.token_bytes(16)
        self._open[transaction_id] = Transaction(self._snapshot, read_only)
        return transaction_id

    def get(self, transaction_id: bytes) -> Transaction:
        """One that is open; raises `InvalidArgumentError`."""
        self._drop_expired()
        try:
            return self._open[transaction_id]
        except KeyError:
            raise InvalidArgumentError("Transaction is invalid or closed.") from None

    def close(self, transaction_id: bytes) -> Transaction:
        """Close one that is open, in order to commit it."""
        transaction = self.get(transaction_id)
        del self._open[transaction_id]
        self._closed[transaction_id] = transaction.began_at
        return transaction

    def roll_back(self, transaction_id: bytes) -> None:
        """Close it, unless it is closed already: clients roll back what failed to commit."""
        if transaction_id not in self._closed:
            self.close(transaction_id)

    def _drop_expired(self) -> None:
        oldest = time.monotonic() - _LIFETIME_S
        for transaction_id in [key for key, value in self._open.items() if value.began_at < oldest]:
            del self._open[transaction_id]
        for transaction_id in [key for key, began_at in self._closed.items() if began_at < oldest]:
            del self._closed[transaction_id]


def _same(now: list[Document], read: list[Document]) -> bool:
    return len(now) == len(read) and all(a is b for a, b in zip(now, read, strict=True))

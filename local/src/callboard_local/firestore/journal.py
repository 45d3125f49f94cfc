"""Keeps the documents in a SQLite file, so that a restarted server has them again."""

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from .messages import Document


class Journal:
    """Every commit is in the file before its caller is answered: a killed server loses nothing.

    A machine that loses power may lose the last commits (`synchronous=NORMAL`), which is fine for development
    and makes a commit cost microseconds: that is why it may run on the event loop.
    """

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS documents"
            " (database TEXT, path TEXT, document BLOB NOT NULL, PRIMARY KEY (database, path)) WITHOUT ROWID"
        )

    def load(self) -> Iterator[tuple[str, str, Document]]:
        """All that was stored: database, path, document."""
        for database, path, blob in self._connection.execute("SELECT database, path, document FROM documents"):
            yield database, path, Document.FromString(blob)

    def write(self, database: str, changes: Mapping[str, Document | None]) -> None:
        """Store the changes of one commit, all or none; None deletes."""
        with self._connection:
            for path, document in changes.items():
                if document is None:
                    self._connection.execute("DELETE FROM documents WHERE database = ? AND path = ?", (database, path))
                else:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)",
                        (database, path, document.SerializeToString()),
                    )

    def close(self) -> None:
        self._connection.close()

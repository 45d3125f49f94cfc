"""Keeps the documents in a SQLite file, so that a restarted server has them again."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from callboard_local.journal import SqliteFile

from .messages import Document

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS documents"
    " (database TEXT, path TEXT, document BLOB NOT NULL, PRIMARY KEY (database, path)) WITHOUT ROWID"
)


class Journal(SqliteFile):
    """Every commit is in the file before its caller is answered."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, _SCHEMA)

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

"""What the embedded databases keep their data in: a SQLite file that survives them."""

import sqlite3
from pathlib import Path


class SqliteFile:
    """A file that has each commit before its caller is answered: a killed server loses nothing.

    A machine that loses power may lose the last commits (`synchronous=NORMAL`), which is fine for development
    and makes a commit cost microseconds: that is why it may run on the event loop.
    """

    def __init__(self, file: Path, schema: str) -> None:
        self._connection = sqlite3.connect(file)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(schema)
        except sqlite3.Error:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

"""Keeps the trees in a SQLite file, a row for each scalar, so that a restarted server has them again."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

from callboard_local.journal import SqliteFile

from .nodes import Node
from .paths import Path
from .values import Parser

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS leaves"
    " (namespace TEXT, path TEXT, value TEXT NOT NULL, PRIMARY KEY (namespace, path)) WITHOUT ROWID"
)
_DELETE_ALL = "DELETE FROM leaves WHERE namespace = :ns"
# The character after a slash is a zero: what lies between begins with the path and a slash.
_DELETE = f"{_DELETE_ALL} AND (path = :path OR path > :path || '/' AND path < :path || '0')"


class Journal(SqliteFile):
    """Every write is in the file before its caller is answered."""

    def __init__(self, file: File) -> None:
        super().__init__(file, _SCHEMA)

    def load(self) -> dict[str, Node]:
        """All that was stored: the root of each namespace."""
        trees: dict[str, dict[str, Any]] = defaultdict(dict)
        for namespace, path, value in self._connection.execute("SELECT namespace, path, value FROM leaves"):
            place = trees[namespace]
            *above, last = ["", *path.split("/")] if path else [""]
            for key in above:
                place = place.setdefault(key, {})
            place[last] = json.loads(value)
        return {namespace: Parser(0).node(tree[""]) for namespace, tree in trees.items()}

    def write(self, namespace: str, touched: Mapping[Path, Node]) -> None:
        """Replace these subtrees by these nodes, all or none."""
        with self._connection:
            for path, node in touched.items():
                self._connection.execute(_DELETE if path else _DELETE_ALL, {"ns": namespace, "path": "/".join(path)})
                self._connection.executemany(
                    "INSERT INTO leaves VALUES (?, ?, ?)",
                    ((namespace, "/".join(leaf), json.dumps(value)) for leaf, value in node.leaves(path)),
                )

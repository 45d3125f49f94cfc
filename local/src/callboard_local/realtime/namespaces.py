"""The databases of a server, one a namespace."""

import re
from collections.abc import Iterator
from pathlib import Path as File

from .database import Database
from .errors import BadRequestError
from .journal import Journal

DEFAULT = "default"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_ADDRESS = re.compile(r"[0-9.]+|\[.*|localhost", re.ASCII)


class Namespaces:
    """All databases, each made when it is first asked for; in memory, or in a file as well."""

    def __init__(self, data: File | None = None) -> None:
        self._journal = Journal(data) if data is not None else None
        self._databases: dict[str, Database] = {}
        if self._journal is not None:
            for name, root in self._journal.load().items():
                self._databases[name] = Database(name, self._journal, root)

    def __iter__(self) -> Iterator[Database]:
        yield from self._databases.values()

    def __getitem__(self, name: str) -> Database:
        if name not in self._databases:
            if not _NAME.fullmatch(name):
                raise BadRequestError("Invalid namespace: it is made of letters, digits, - and _")
            self._databases[name] = Database(name, self._journal)
        return self._databases[name]

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def namespace_of(parameter: str | None, host: str) -> str:
    """The namespace of a request: its parameter `ns`, else the first label of a host with several, as in production."""
    if parameter is not None:
        return parameter
    name = host.rpartition(":")[0] or host
    label, dot, _ = name.partition(".")
    return label if dot and not _ADDRESS.fullmatch(name) else DEFAULT

"""Resource names and field paths.

A document's *name* is absolute (`projects/p/databases/d/documents/users/ada`); its *path* is the part after
`documents/` (`users/ada`). Inside one database this server uses paths only. The empty path is the root.
"""

import functools
import re

from .errors import InvalidArgumentError

FieldPath = tuple[str, ...]

NAME_FIELD: FieldPath = ("__name__",)

_MAX_ID_BYTES = 1500
_ROOT = re.compile(r"(projects/[^/]+/databases/[^/]+)/documents(?:/|$)")
_DATABASE = re.compile(r"projects/[^/]+/databases/[^/]+")
_RESERVED = re.compile(r"__.*__", re.DOTALL)
_NUMERIC_ID = re.compile(r"__id(-?[0-9]{1,19})__")
_SEGMENT = r"[a-zA-Z_][a-zA-Z_0-9]*|`(?:[^`\\]|\\.)+`"
_FIELD_PATH = re.compile(rf"(?:{_SEGMENT})(?:\.(?:{_SEGMENT}))*", re.DOTALL)
_FIELD_SEGMENT = re.compile(_SEGMENT, re.DOTALL)


def check_database(name: str) -> str:
    """The database's name, unchanged, when it has the form `projects/p/databases/d`."""
    if not _DATABASE.fullmatch(name):
        raise InvalidArgumentError(f'Invalid database name "{name}".')
    return name


def split_name(name: str) -> tuple[str, str]:
    """`projects/p/databases/d/documents[/path]` → (database, path)."""
    match = _ROOT.match(name)
    if match is None:
        missing = "projects" if not name.startswith("projects/") else "documents"
        at = 0 if missing == "projects" else len(name)
        raise InvalidArgumentError(f'Document name "{name}" lacks "{missing}" at index {at}.')
    return match.group(1), name[match.end() :]


def document_path(database: str, name: str) -> str:
    """The path of the document called `name`, which has to lie in `database`."""
    owner, path = split_name(name)
    if owner != database:
        raise InvalidArgumentError(f'Document name "{name}" is not within database "{database}".')
    at = len(name) - len(path)
    segments = path.split("/")
    for segment in segments:
        if not segment:
            raise InvalidArgumentError(f'Document name "{name}" lacks a resource id at index {at}.')
        if segment in {".", ".."}:
            raise InvalidArgumentError(f'Document name "{name}" contains a resource id "{segment}" at index {at}.')
        at += len(segment) + 1
    if len(segments) % 2:
        raise InvalidArgumentError(f'Document name "{name}" lacks "/" at index {len(name)}.')
    return path


def parent_path(database: str, name: str) -> str:
    """The path of a query's parent: a document, or the root (the empty path)."""
    return document_path(database, name) if split_name(name)[1] else ""


def check_writable(path: str) -> None:
    """Refuse ids that may be read but never written: reserved ones, and those over 1500 bytes."""
    for index, segment in enumerate(path.split("/")):
        if len(segment.encode()) > _MAX_ID_BYTES:
            raise InvalidArgumentError("The key path element name is longer than 1500 bytes.")
        if _RESERVED.fullmatch(segment) and not (index % 2 and _NUMERIC_ID.fullmatch(segment)):
            kind = "Resource" if index % 2 else "Collection"
            raise InvalidArgumentError(f'{kind} id "{segment}" is invalid because it is reserved.')


@functools.lru_cache(maxsize=16_384)  # a query that runs again sorts the same names again
def path_key(path: str) -> tuple[tuple[int, int | str], ...]:
    """The order of documents by name: segment by segment, numeric ids (`__id7__`) before all others."""
    return tuple(_segment_key(segment) for segment in path.split("/"))


def _segment_key(segment: str) -> tuple[int, int | str]:
    match = _NUMERIC_ID.fullmatch(segment) if segment.startswith("__id") else None
    return (0, int(match.group(1))) if match else (1, segment)


@functools.lru_cache(maxsize=4096)
def parse_field_path(text: str) -> FieldPath:
    """ "a.`b.c`" → ("a", "b.c")."""
    if not _FIELD_PATH.fullmatch(text):
        raise InvalidArgumentError(
            f'Invalid property path "{text}". Unquoted property paths must match regex '
            "([a-zA-Z_][a-zA-Z_0-9]*), and quoted property paths must match regex (`(?:[^`\\\\]|(?:\\\\.))+`)"
        )
    return tuple(
        re.sub(r"\\(.)", r"\1", part[1:-1], flags=re.DOTALL) if part.startswith("`") else part
        for part in _FIELD_SEGMENT.findall(text)
    )

"""Firestore paths, checked before Google sees them.

document_path("clients/demo/notifications/job1")    # as it came
document_path("clients/demo/notifications")         # InvalidArgs: a document path has an even number of segments
join("clients", user_id, "notifications")           # InvalidArgs when user_id could leave its place
"""

from __future__ import annotations

import re

from callboard.errors import InvalidArgs

MAX_SEGMENT_BYTES = 1_500
MAX_SEGMENTS = 200
"""Firestore's own limit is 100 levels of sub-collections."""

_RESERVED = re.compile(r"__.*__", re.DOTALL)


def document_path(path: str) -> str:
    """`path` if it can name a document (`collection/id`, …); else InvalidArgs."""
    if len(_segments(path, "document")) % 2:
        raise InvalidArgs("A document path has an even number of segments: collection/document/…")
    return path


def collection_path(path: str) -> str:
    """`path` if it can name a collection (`collection`, `collection/id/collection`, …); else InvalidArgs."""
    if len(_segments(path, "collection")) % 2 == 0:
        raise InvalidArgs("A collection path has an odd number of segments: collection/document/collection …")
    return path


def segment(text: str, what: str = "an id") -> str:
    """`text` if it can be one segment (a document's or a collection's id); else InvalidArgs, about `what`."""
    if not isinstance(text, str):
        raise InvalidArgs(f"{what}: a text is needed.")
    if not text or "/" in text:
        raise InvalidArgs(f"{what}: it names a document, so it is not empty and holds no slash.")
    _check(text, what)
    return text


def join(*segments: str) -> str:
    """The path of these segments, each checked: no value from outside can add a level or leave its place."""
    return "/".join(segment(text) for text in segments)


def _segments(path: str, kind: str) -> list[str]:
    if not isinstance(path, str):
        raise InvalidArgs(f"A {kind} path is a text.")
    segments = path.split("/")
    if len(segments) > MAX_SEGMENTS:
        raise InvalidArgs(f"A {kind} path has at most {MAX_SEGMENTS} segments.")
    for text in segments:
        if not text:
            raise InvalidArgs(f"A {kind} path has no empty segments, and no slash at its ends.")
        _check(text, f"A {kind} path")
    return segments


def _check(text: str, what: str) -> None:
    if text in (".", ".."):
        raise InvalidArgs(f"{what}: Firestore takes no segment `.` or `..`.")
    if _RESERVED.fullmatch(text):
        raise InvalidArgs(f"{what}: Firestore takes no segment of the form __…__: these are reserved.")
    if "\x00" in text:
        raise InvalidArgs(f"{what}: Firestore takes no NUL.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgs(f"{what}: this is not valid Unicode: it holds half a surrogate pair.") from None
    if size > MAX_SEGMENT_BYTES:
        raise InvalidArgs(f"{what}: a segment has at most {MAX_SEGMENT_BYTES} bytes.")

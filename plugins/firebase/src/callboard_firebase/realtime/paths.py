"""Realtime Database paths, checked before Google sees them.

segments("clients/demo/direct_message_notif")   # ["clients", "demo", "direct_message_notif"]
segments("clients//x")                          # InvalidArgs
segments("")                                    # []: the root
"""

from __future__ import annotations

import re

from callboard.errors import InvalidArgs

MAX_KEY_BYTES = 768
MAX_DEPTH = 32

_FORBIDDEN = re.compile(r"[.$#\[\]/\x00-\x1f\x7f]")


def key(text: str) -> str:
    """`text` if it can be one segment of a path; else InvalidArgs."""
    if not isinstance(text, str) or not text:
        raise InvalidArgs("A key of the Realtime Database is a text that is not empty.")
    if _FORBIDDEN.search(text):
        raise InvalidArgs("A key of the Realtime Database holds none of . $ # [ ] / and no control characters.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgs("A key of the Realtime Database is valid Unicode: it holds half a surrogate pair.") from None
    if size > MAX_KEY_BYTES:
        raise InvalidArgs(f"A key of the Realtime Database has at most {MAX_KEY_BYTES} bytes.")
    return text


def segments(path: str) -> list[str]:
    """The keys of a path (`a/b`); none for the root (the empty text); else InvalidArgs."""
    if not isinstance(path, str):
        raise InvalidArgs("A path is a text.")
    if not path:
        return []
    keys = [key(text) for text in path.split("/")]
    if len(keys) > MAX_DEPTH:
        raise InvalidArgs(f"A path of the Realtime Database has at most {MAX_DEPTH} keys.")
    return keys


def node(path: str) -> list[str]:
    """The same for what is replaced or removed: never the root, which holds everyone's data."""
    if not path:
        raise InvalidArgs("The root of the database is not written as a whole.")
    return segments(path)

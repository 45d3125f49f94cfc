"""Paths and keys: what a key may be, and how keys sort."""

import re

from .errors import INVALID_KEY, INVALID_PATH, BadRequestError

Path = tuple[str, ...]

PRIORITY = ".priority"
MAX_DEPTH = 32
MAX_KEY_BYTES = 768

_FORBIDDEN = re.compile(r"[.$#\[\]/\x00-\x1f\x7f]")
_INTEGER = re.compile(r"-?0*[0-9]{1,10}", re.ASCII)
_INDEX = re.compile(r"0|[1-9][0-9]*", re.ASCII)


def parse_path(text: str) -> Path:
    """The keys of `a/b/c`; empty ones are ignored. The last may be `.priority`."""
    keys = tuple(key for key in text.split("/") if key)
    named = keys[:-1] if keys and keys[-1] == PRIORITY else keys
    if not all(map(is_key, named)):
        raise BadRequestError(INVALID_PATH)
    check_depth(len(named))
    return keys


def is_key(key: str) -> bool:
    """Whether a child may have this name."""
    if not key or _FORBIDDEN.search(key) is not None:
        return False
    try:
        return len(key.encode()) <= MAX_KEY_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def check_key(key: str) -> None:
    if not is_key(key):
        raise BadRequestError(INVALID_KEY)


def check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadRequestError(f"Invalid data; the tree is deeper than {MAX_DEPTH} levels.")


def key_order(key: str) -> tuple[int, int, int, str]:
    """Sorts as Google does: keys that are 32-bit integers first, by their number, then the others by their text."""
    if _INTEGER.fullmatch(key):
        number = int(key)
        if -(2**31) <= number < 2**31:
            return 0, number, len(key), key
    return 1, 0, 0, key


def array_index(key: str) -> int | None:
    """The index that a key of an array-like object stands for; None for any other key."""
    return int(key) if len(key) <= 10 and _INDEX.fullmatch(key) else None

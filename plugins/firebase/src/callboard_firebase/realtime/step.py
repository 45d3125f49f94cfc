"""What one event makes of a watched node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Struct

from callboard_firebase.realtime.tree import children, patch, put, same, split


@dataclass(frozen=True, slots=True)
class Step:
    """The node after an event, and the keys of its children that differ from before. `whole`: it was all sent anew."""

    tree: Any
    children: Mapping[str, Any]
    touched: tuple[str, ...]
    whole: bool


class MalformedEventError(Exception):
    """An event is not what the protocol says."""


class _Change(Struct):
    path: str
    data: Any


def step(tree: Any, name: str, data: bytes) -> Step:
    """Apply a `put` or `patch` to a node. MalformedEventError."""
    try:
        change = msgspec.json.decode(data, type=_Change)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEventError(type(error).__name__) from error
    path = split(change.path)
    if name == "put":
        after = put(tree, path, change.data)
    elif isinstance(change.data, dict):
        after = patch(tree, path, change.data)
    else:
        raise MalformedEventError("a patch without an object")
    return _compared(tree, after, _heads(name, path, change.data), whole=name == "put" and not path)


def _heads(name: str, path: list[str], data: Any) -> set[str] | None:
    """The children that an event may have changed; None: any."""
    if path:
        return {path[0]}
    if name == "put":
        return None
    below = [split(text) for text in data]
    return {keys[0] for keys in below} if all(below) else None


def _compared(before: Any, after: Any, heads: set[str] | None, *, whole: bool) -> Step:
    old, new = children(before), children(after)
    named = old.keys() | new.keys() if heads is None else heads
    touched = tuple(name for name in named if not same(old.get(name), new.get(name)))
    return Step(after, MappingProxyType(new), touched, whole)

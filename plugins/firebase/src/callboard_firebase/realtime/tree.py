"""A JSON tree as the Realtime Database keeps it: nothing is null or empty, and children may be shown as an array.

Trees are never altered: a write makes new containers along its path and shares the rest. They have the shape of the
database's own answers: an object whose keys are array indices, more than half of them taken, is a list with None in its
gaps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_INDEX = re.compile(r"0|[1-9][0-9]{0,9}")
_canonical = msgspec.json.Encoder(order="deterministic").encode


def normal(value: Any) -> Any:
    """A value as the database would keep it; None for what it keeps nothing of."""
    if isinstance(value, (dict, list)):
        kept = ((name, normal(child)) for name, child in children(value).items())
        return _shaped({name: child for name, child in kept if child is not None})
    return value


def children(tree: Any) -> dict[str, Any]:
    """The children of a node by key; none of a leaf. Not to be altered: it may be the tree's own."""
    if isinstance(tree, dict):
        return tree
    if isinstance(tree, list):
        return {str(index): child for index, child in enumerate(tree) if child is not None}
    return {}


def put(tree: Any, path: Sequence[str], value: Any) -> Any:
    """The tree with a value at a path; None removes, and with it what is left empty."""
    if not path:
        return normal(value)
    head, *rest = path
    before = children(tree)
    child = put(before.get(head), rest, value)
    if child is not None:
        return _shaped({**before, head: child})
    if head not in before:
        # Nothing was there to remove: a leaf on the way stays what it is.
        return tree
    return _shaped({name: other for name, other in before.items() if name != head})


def patch(tree: Any, path: Sequence[str], values: Mapping[str, Any]) -> Any:
    """The tree with each of the values put below a path; their keys may be paths themselves."""
    for below, value in values.items():
        tree = put(tree, [*path, *split(below)], value)
    return tree


def split(path: str) -> list[str]:
    """The keys of an event's path: `/` is the node itself."""
    return [name for name in path.split("/") if name]


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal as JSON: to Python 1 and true are."""
    return one is other or (one == other and _canonical(one) == _canonical(other))


def _shaped(pairs: dict[str, Any]) -> Any:
    if not pairs:
        return None
    highest = -1
    for name in pairs:
        if not _INDEX.fullmatch(name):
            return pairs
        highest = max(highest, int(name))
    if highest >= 2 * len(pairs):
        return pairs
    items: list[Any] = [None] * (highest + 1)
    for name, child in pairs.items():
        items[int(name)] = child
    return items

"""The consumer's end of a watch: a node's children as of now, and what the consumer has not seen of them yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from callboard_firebase.latest import Latest, Unseen
from callboard_firebase.realtime.tree import same


@dataclass(frozen=True, slots=True)
class ChildChange:
    """One child that came, changed or went. For `removed`, the value as this watch last yielded it; one that came and
    went between two batches is `removed` without having been `added`.

    `several`: it happened in more than one step, and whoever read the child elsewhere may have seen one between. What
    changed and changed back is `modified`.
    """

    kind: Literal["added", "modified", "removed"]
    key: str
    value: Any
    several: bool = False


@dataclass(frozen=True, slots=True)
class NodeBatch:
    """One state of a node, and how it differs from the batch before.

    `children` is the whole current state by key, which no later event alters, in no order: keys made by `push` sort by
    time. A node that is no object has none; an array's are "0", "1", … Values are the watch's: copy one to alter it.
    The first batch of a watch has `initial=True` and every child in it as an added change.
    """

    initial: bool
    changes: tuple[ChildChange, ...]
    children: Mapping[str, Any]


class NodeWatch(Latest[NodeBatch]):
    """What is pending is, per child, the value the consumer last saw; its size is bounded by the node's."""

    __slots__ = ("_delivered", "_known", "_unseen", "children")

    def __init__(self) -> None:
        super().__init__()
        self.children: Mapping[str, Any] = MappingProxyType({})
        self._unseen: dict[str, Unseen[Any]] = {}
        self._known = False
        self._delivered = False

    def update(self, children: Mapping[str, Any], touched: Iterable[str]) -> None:
        """A new state, which the caller no longer alters; `touched` names the children that differ."""
        if self._delivered:
            for name in touched:
                self._note(name, self.children.get(name))
        self.children = children
        self._known = True
        if self._unseen or not self._delivered:
            self._wake()

    def _note(self, name: str, before: Any) -> None:
        if (unseen := self._unseen.get(name)) is not None:
            unseen.note(before)
        else:
            self._unseen[name] = Unseen(before)

    def _take(self) -> NodeBatch | None:
        if not self._known:
            return None
        if not self._delivered:
            self._delivered = True
            added = tuple(ChildChange("added", name, value) for name, value in self.children.items())
            return NodeBatch(True, added, self.children)
        changes = tuple(
            change
            for name, one in self._unseen.items()
            if (change := _change(name, one, self.children.get(name))) is not None
        )
        self._unseen.clear()
        return NodeBatch(False, changes, self.children) if changes else None


def _change(name: str, unseen: Unseen[Any], after: Any) -> ChildChange | None:
    before, several = unseen.before, unseen.several
    if after is None:
        gone = before if before is not None else unseen.last
        return None if gone is None else ChildChange("removed", name, gone, several)
    if before is None:
        return ChildChange("added", name, after, several)
    return None if same(before, after) and not several else ChildChange("modified", name, after, several)

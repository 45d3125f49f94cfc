"""The consumer's end of a watch: a node's children as of now, and what the consumer has not seen of them yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from callboard.errors import CallError
from callboard_firebase.realtime.tree import same


@dataclass(frozen=True, slots=True)
class ChildChange:
    """One child that came, changed or went. For `removed`, the value as this watch last yielded it."""

    kind: Literal["added", "modified", "removed"]
    key: str
    value: Any


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


class NodeWatch(AsyncIterator[NodeBatch]):
    """Yields batches to one task. Nothing is queued: a consumer that is slow finds the latest state of each child.

    What is pending is, per child, the value the consumer last saw; its size is bounded by the node's.
    Iteration raises the CallError that ended the watch, once every batch before it is taken.
    """

    __slots__ = ("_delivered", "_failure", "_known", "_seen", "_waiter", "children")

    def __init__(self) -> None:
        self.children: Mapping[str, Any] = MappingProxyType({})
        self._seen: dict[str, Any] = {}
        self._known = False
        self._delivered = False
        self._failure: CallError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def update(self, children: Mapping[str, Any], touched: Iterable[str]) -> None:
        """A new state, which the caller no longer alters; `touched` names the children that differ."""
        before = self.children
        if self._delivered:
            for name in touched:
                self._seen.setdefault(name, before.get(name))
        self.children = children
        self._known = True
        if self._seen or not self._delivered:
            self._wake()

    def fail(self, failure: CallError) -> None:
        """End the watch with an error."""
        self._failure = self._failure or failure
        self._wake()

    def __aiter__(self) -> NodeWatch:
        return self

    async def __anext__(self) -> NodeBatch:
        if self._waiter is not None:
            raise RuntimeError("a watch is read by one task only")
        while True:
            batch = self._take()
            if batch is not None:
                return batch
            if self._failure is not None:
                # A copy: the consumer's traceback is not to pile up on the one that is kept.
                raise copy(self._failure) from self._failure.__cause__
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _take(self) -> NodeBatch | None:
        if not self._known:
            return None
        if not self._delivered:
            self._delivered = True
            added = tuple(ChildChange("added", name, value) for name, value in self.children.items())
            return NodeBatch(True, added, self.children)
        changes = tuple(
            change for name, before in self._seen.items() if (change := _change(name, before, self.children.get(name)))
        )
        self._seen.clear()
        return NodeBatch(False, changes, self.children) if changes else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _change(name: str, before: Any, after: Any) -> ChildChange | None:
    if after is None:
        return None if before is None else ChildChange("removed", name, before)
    if before is None:
        return ChildChange("added", name, after)
    return None if same(before, after) else ChildChange("modified", name, after)

"""The consumer's end of a watch: never a queue, always the latest state, and how it differs from what was taken."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from copy import copy
from typing import Generic, Self, TypeVar

from callboard.errors import CallError

B = TypeVar("B")
S = TypeVar("S")


class Latest(AsyncIterator[B]):
    """Yields batches to one task. Nothing is queued: a consumer that is slow finds the latest state.

    Iteration raises the CallError that ended the watch, once every batch before it is taken.
    """

    __slots__ = ("_failure", "_waiter")

    def __init__(self) -> None:
        self._failure: CallError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @abstractmethod
    def _take(self) -> B | None:
        """What the consumer has not seen, which it then has; None when there is nothing."""

    def fail(self, failure: CallError) -> None:
        """End the watch with an error."""
        self._failure = self._failure or failure
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> B:
        if self._waiter is not None:
            raise RuntimeError("a watch is read by one task only")
        while True:
            batch = self._take()
            if batch is not None:
                return batch
            if self._failure is not None:
                # A copy: the same failure can end many watches, each in a task of its own.
                raise copy(self._failure) from self._failure.__cause__
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


class Unseen(Generic[S]):
    """One part of the state that has changed since the consumer's last batch: what it was then, and last was.

    `several`: in more than one step. Whoever read the source elsewhere may have seen one between, so what changed and
    changed back is told, and so is the end of what came and went.
    """

    __slots__ = ("before", "last", "several")

    def __init__(self, before: S | None) -> None:
        self.before = self.last = before
        self.several = False

    def note(self, before: S | None) -> None:
        """It differs from `before`, once more."""
        self.several = True
        self.last = before if before is not None else self.last

"""Bulkheads: each namespace has its own slots and its own threads, so that a blocked one exhausts itself alone."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from callboard.errors import DeadlineExceeded, ResourceExhausted


class Bulkhead:
    """The slots and threads of one namespace.

    As many calls may wait as may run; beyond that a call is refused at once with ResourceExhausted. A sync method
    keeps its slot until its thread ends, however long after the deadline that is.
    """

    def __init__(self, namespace: str, *, concurrency: int, threads: int) -> None:
        self._async_slots = _Slots(concurrency)
        self._thread_slots = _Slots(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"callboard-{namespace.lower()}")
        self._busy: set[asyncio.Future[Any]] = set()

    @property
    def in_flight(self) -> int:
        return self._async_slots.taken + self._thread_slots.taken

    @property
    def busy_threads(self) -> int:
        return len(self._busy)

    async def enter(self, *, on_thread: bool, deadline: float) -> Slot:
        """Wait for a slot until `deadline` (monotonic): ResourceExhausted when too many wait, else DeadlineExceeded."""
        slots = self._thread_slots if on_thread else self._async_slots
        await slots.acquire(deadline)
        return Slot(slots)

    async def run_on_thread(self, slot: Slot, function: Callable[[], Any]) -> Any:
        """Run a sync function on one of the namespace's threads; the slot is freed when the thread ends."""
        context = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(self._pool, context.run, _contained, function)
        self._busy.add(future)
        slot.keep_until(future)
        future.add_done_callback(self._ended)
        return await asyncio.shield(future)

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._busy.discard(future)
        if not future.cancelled():
            future.exception()  # looked at: its caller may have left at the deadline

    def close(self) -> None:
        """Take no more work; threads that still run are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Slot:
    """One place in a bulkhead, given back exactly once."""

    def __init__(self, slots: _Slots) -> None:
        self._slots: _Slots | None = slots
        self._thread: asyncio.Future[Any] | None = None

    def keep_until(self, thread: asyncio.Future[Any]) -> None:
        self._thread = thread
        thread.add_done_callback(lambda _: self._free())

    def leave(self) -> None:
        """The call is over; a slot whose thread still runs is freed by the thread's end instead."""
        if self._thread is None or self._thread.done():
            self._free()

    def _free(self) -> None:
        if self._slots is not None:
            self._slots.release()
            self._slots = None


class _Slots:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0
        self._semaphore = asyncio.Semaphore(limit)
        self.taken = 0

    async def acquire(self, deadline: float) -> None:
        if self._semaphore.locked():
            if self.waiting >= self.limit:
                raise ResourceExhausted("The namespace has too many calls in flight.")
            self.waiting += 1
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._semaphore.acquire()
            except TimeoutError:
                raise DeadlineExceeded("The deadline passed while the call waited for a slot.") from None
            finally:
                self.waiting -= 1
        else:
            await self._semaphore.acquire()
        self.taken += 1

    def release(self) -> None:
        self.taken -= 1
        self._semaphore.release()


class EscapedFromMethod(Exception):
    """A method raised SystemExit, KeyboardInterrupt or the like: contained, so that it hurts its own call only."""


def _contained(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception:
        raise
    except BaseException as error:
        raise EscapedFromMethod(type(error).__name__) from error

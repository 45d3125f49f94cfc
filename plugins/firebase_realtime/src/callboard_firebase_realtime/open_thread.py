"""A chat thread that somebody has open: which kind it is of, and the batches of its newest messages.

Nothing here writes: a thread that is watched is the same thread afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple

from callboard import Thread
from callboard_firebase.items import SYNC_LIMIT
from callboard_firebase.realtime import NodeBatch, Query, RealtimeDatabase
from callboard_firebase_realtime.places import MODES, Mode, children, has_thread, messages_path, thread_path

NEWEST = Query(limit_to_last=SYNC_LIMIT)


class Seen(NamedTuple):
    """A batch of a thread's messages: the keys of what has changed, and all there are. `mode` None: no thread.

    `passed`: those of the keys that others may have read in a state between (see `ChildChange.several`).
    """

    mode: Mode | None
    initial: bool
    changed: list[str]
    children: Mapping[str, Any]
    passed: frozenset[str] = frozenset()


async def find_mode(database: RealtimeDatabase, thread: Thread) -> Mode | None:
    """The kind that a thread is of: the one it was opened as; for `auto` the one with messages, `chats` if both have.

    While neither has, the one that exists, `chats` if both do. None: there is none, or can be none.
    """
    return (await _look(database, thread)).mode


async def watch_thread(database: RealtimeDatabase, thread: Thread) -> AsyncGenerator[Seen, None]:
    """The thread's newest messages, batch by batch, until closed. Raises what ended the watch.

    A thread opened as `auto` that has no messages yet is first seen without any; then both kinds are watched until one
    has a message, and from then on that one. A thread that cannot exist (see `has_thread`) stays without.
    """
    mode, is_settled = await _look(database, thread)
    if mode is not None and is_settled:
        async with database.watch(messages_path(*thread.place, mode), NEWEST) as batches:
            async for batch in batches:
                yield _seen(mode, batch)
        return
    yield Seen(mode, True, [], {})
    if is_settled:
        await asyncio.Event().wait()  # there will be nothing, until it is closed
    async with aclosing(_watch_both(database, thread)) as found:
        async for seen in found:
            yield seen


class _Kind(NamedTuple):
    """`is_settled`: a first message does not make it another."""

    mode: Mode | None
    is_settled: bool


async def _look(database: RealtimeDatabase, thread: Thread) -> _Kind:
    if not has_thread(*thread.place):
        return _Kind(None, True)
    if thread.mode != "auto":
        return _Kind(thread.mode, True)
    nodes = await asyncio.gather(
        *(database.get(thread_path(*thread.place, mode), shallow=True) for mode in MODES),
    )
    found = {mode: node for mode, node in zip(MODES, nodes, strict=True) if node is not None}
    for mode, node in found.items():
        if "messages" in children(node):
            return _Kind(mode, True)
    return _Kind(next(iter(found), None), False)


async def _watch_both(database: RealtimeDatabase, thread: Thread) -> AsyncGenerator[Seen, None]:
    stacks = {mode: AsyncExitStack() for mode in MODES}
    async with AsyncExitStack() as stack:
        watches: dict[Mode, AsyncIterator[NodeBatch]] = {}
        for mode in MODES:
            await stack.enter_async_context(stacks[mode])
            watch = database.watch(messages_path(*thread.place, mode), NEWEST)
            watches[mode] = await stacks[mode].enter_async_context(watch)
        chosen, batch = await _first_message(watches)
        for mode in MODES:
            if mode != chosen:
                await stacks[mode].aclose()
        # To whoever has seen an empty thread these are new, though the watch begins with them.
        yield _seen(chosen, batch)._replace(initial=False)
        async for batch in watches[chosen]:
            yield _seen(chosen, batch)


async def _first_message(watches: Mapping[Mode, AsyncIterator[NodeBatch]]) -> tuple[Mode, NodeBatch]:
    """The first batch with anything in it, and whose it is; raises what ends one of the watches before."""
    waiting = {mode: asyncio.create_task(_next(watch), name="a thread's first") for mode, watch in watches.items()}
    try:
        while True:
            await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
            for mode, task in waiting.items():
                if not task.done():
                    continue
                if (batch := task.result()).children:
                    return mode, batch
                waiting[mode] = asyncio.create_task(_next(watches[mode]), name="a thread's first")
    finally:
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)


async def _next(watch: AsyncIterator[NodeBatch]) -> NodeBatch:
    return await anext(watch)


def _seen(mode: Mode, batch: NodeBatch) -> Seen:
    passed = frozenset(change.key for change in batch.changes if change.several)
    return Seen(mode, batch.initial, [change.key for change in batch.changes], batch.children, passed)

"""Thousands of watches on one engine, against a server that allows 100 streams on a connection."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.cloud.firestore import FieldFilter

from callboard_firebase import ListenOptions
from callboard_firebase.listen import Source
from callboard_local.firestore_process import FirestoreProcess

from .conftest import Listening, listening

pytestmark = pytest.mark.anyio

WATCHES = 3_000
STREAMS = 120
WRITES = 1_500


@pytest.fixture
async def opened() -> AsyncIterator[Listening]:
    """More streams than one connection may carry."""
    spread = ListenOptions(targets_per_stream=WATCHES // STREAMS)
    with FirestoreProcess(max_streams=100) as server:
        async with listening(server.address, "demo", spread) as opened:
            await opened.client.document("notes/any").get()
            yield opened


def path(number: int) -> str:
    """The document of a watch: itself watched, or what a query over its own collection finds."""
    return f"users/u{number}/{'jobs/j' if number % 2 else 'unread/n'}"


def source(opened: Listening, number: int) -> Source:
    document = opened.client.document(path(number))
    return document if number % 2 else document.parent.where(filter=FieldFilter("read", "==", False))


def threads() -> int:
    """Those of this process, gRPC's own among them."""
    return len(list(Path(f"/proc/{os.getpid()}/task").iterdir()))


async def test_thousands_of_watches_hear_every_write_once(opened: Listening) -> None:
    before = threads()
    heard: Counter[tuple[int, int]] = Counter()
    settled: set[int] = set()
    sent: set[tuple[int, int]] = set()
    gets = 0

    async def watch(number: int) -> None:
        async with opened.engine.watch(source(opened, number)) as batches:
            async for batch in batches:
                settled.add(number)
                heard.update((number, change.document.data["n"]) for change in batch.changes)

    async def write(numbers: list[int]) -> None:
        for number in numbers:
            n = len(sent)
            sent.add((number, n))
            await opened.client.document(path(number)).set({"read": False, "n": n})
            # No query finds this one.
            await opened.client.document(f"users/u{number & ~1}/unread/other").set({"read": True, "n": -n})

    async def read() -> None:
        nonlocal gets
        while len(heard) < WRITES:
            await opened.client.document("notes/any").get(timeout=10)
            gets += 1

    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        watches = [tasks.create_task(watch(number)) for number in range(WATCHES)]
        while len(settled) < WATCHES:
            await asyncio.sleep(0.02)
        stats = opened.engine.stats()
        assert (stats.streams, stats.connected, stats.targets, stats.waiting) == (STREAMS, STREAMS, WATCHES, 0)
        assert sorted(line.streams for line in opened.engine._lines._lines) == [40, 80]
        assert threads() - before <= 10

        chosen = random.sample(range(WATCHES), WRITES)
        async with asyncio.TaskGroup() as work:
            for part in range(4):
                work.create_task(write(chosen[part::4]))
            work.create_task(read())
        assert gets > 0
        # One more write to each stream: what came twice, or to the wrong watch, has come before it.
        for number in range(0, WATCHES, WATCHES // STREAMS):
            await write([number])
        while not sent <= heard.keys():
            await asyncio.sleep(0.02)
        assert heard == Counter(sent)
        assert opened.engine.stats().reconnects == 0
        for task in watches:
            task.cancel()
    assert opened.engine.stats().targets == 0
    assert threads() - before <= 10

"""The consumer's end: coalescing, order, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard_firebase import NodeBatch, NodeWatch

pytestmark = pytest.mark.anyio


def update(watch: NodeWatch, **children: Any) -> None:
    """A new state, with the children that differ."""
    before = watch.children
    watch.update(children, [key for key in {**before, **children} if before.get(key) is not children.get(key)])


async def take(watch: NodeWatch) -> NodeBatch:
    async with asyncio.timeout(20):
        return await anext(watch)


def summary(batch: NodeBatch) -> list[tuple[str, str, Any]]:
    return sorted((change.kind, change.key, change.value) for change in batch.changes)


async def test_the_first_batch_is_the_latest_state() -> None:
    watch = NodeWatch()
    update(watch, a=1)
    update(watch, a=2, b=1)
    batch = await take(watch)
    assert batch.initial
    assert summary(batch) == [("added", "a", 2), ("added", "b", 1)]


async def test_states_between_two_looks_are_one_batch() -> None:
    watch = NodeWatch()
    update(watch, kept=1, changed=1, gone=1, back=1)
    await take(watch)
    update(watch, kept=1, changed=2, gone=2, passing=1)
    update(watch, kept=1, changed=3, back=2, new=1)
    batch = await take(watch)
    assert summary(batch) == [("added", "new", 1), ("modified", "back", 2), ("modified", "changed", 3),
                              ("removed", "gone", 1), ("removed", "passing", 1)]  # fmt: skip
    assert batch.children == {"kept": 1, "changed": 3, "back": 2, "new": 1}


async def test_what_changed_and_changed_back_and_what_came_and_went_is_told() -> None:
    """Others may have read the state between."""
    watch = NodeWatch()
    update(watch, a=1, b=1)
    await take(watch)
    for a, b, passing in ((2, 1, None), (1, True, 1), (1, True, None)):
        update(watch, a=a, b=b, **({"passing": passing} if passing else {}))
    batch = await take(watch)
    assert summary(batch) == [("modified", "a", 1), ("modified", "b", True), ("removed", "passing", 1)]
    assert {change.key for change in batch.changes if change.several} == {"a", "passing"}


async def test_pending_changes_are_bounded_by_the_children() -> None:
    watch = NodeWatch()
    update(watch, a=0)
    await take(watch)
    for version in range(1, 1_000):
        update(watch, a=version)
    assert len(watch._unseen) == 1

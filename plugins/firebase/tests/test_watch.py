"""The consumer's end: coalescing, order, errors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from callboard_firebase import Batch, Document
from callboard_firebase.listen.watch import Watch

from .conftest import take

pytestmark = pytest.mark.anyio

NOW = datetime(2025, 9, 20, tzinfo=UTC)


def document(name: str, version: int) -> Document:
    return Document(f"notes/{name}", name, {"version": version}, NOW, NOW + timedelta(seconds=version))


def state(**versions: int) -> dict[str, Document]:
    return {f"notes/{name}": document(name, version) for name, version in versions.items()}


def update(watch: Watch, **versions: int) -> None:
    """A new state; every document of the old and the new one may have changed."""
    documents = state(**versions)
    watch.update(documents, watch.documents.keys() | documents.keys(), NOW)


def summary(batch: Batch) -> list[tuple[str, str, int]]:
    return sorted((change.kind, change.document.id, change.document.data["version"]) for change in batch.changes)


async def test_the_first_batch_is_the_latest_state() -> None:
    watch = Watch()
    update(watch, a=1)
    update(watch, a=2, b=1)
    batch = await take(watch)
    assert batch.initial
    assert summary(batch) == [("added", "a", 2), ("added", "b", 1)]


async def test_states_between_two_looks_are_one_batch() -> None:
    watch = Watch()
    update(watch, kept=1, changed=1, gone=1, back=1)
    await take(watch)
    update(watch, kept=1, changed=2, gone=2, passing=1)
    update(watch, kept=1, changed=3, back=2, new=1)
    batch = await take(watch)
    assert summary(batch) == [("added", "new", 1), ("modified", "back", 2), ("modified", "changed", 3),
                              ("removed", "gone", 1), ("removed", "passing", 1)]  # fmt: skip
    assert dict(batch.documents) == state(kept=1, changed=3, back=2, new=1)


async def test_what_came_and_went_unseen_is_told_to_have_gone() -> None:
    """Somebody else may have read it meanwhile, and waits for us to say that it went."""
    watch = Watch()
    update(watch, a=1)
    await take(watch)
    update(watch, a=1, passing=1)
    update(watch, a=1, passing=2)
    update(watch, a=1)
    assert summary(await take(watch)) == [("removed", "passing", 2)]
    update(watch, a=1, passing=3)
    update(watch, a=1)
    update(watch, a=1, passing=4)
    assert summary(await take(watch)) == [("added", "passing", 4)]


async def test_pending_changes_are_bounded_by_the_documents() -> None:
    watch = Watch()
    update(watch, a=0)
    await take(watch)
    for version in range(1, 1_000):
        update(watch, a=version)
    assert len(watch._unseen or ()) == 1


async def test_what_changed_in_several_steps_says_so() -> None:
    watch = Watch()
    update(watch, a=1, b=1)
    await take(watch)
    update(watch, a=2, b=2)
    assert [change.several for change in (await take(watch)).changes] == [False, False]
    for changed, documents in (("a", state(a=3, b=2)), ("a", state(a=4, b=2)), ("b", state(a=4, b=3))):
        watch.update(documents, [path for path in documents if path.endswith(changed)], NOW)
    changes = {change.document.id: change.several for change in (await take(watch)).changes}
    assert changes == {"a": True, "b": False}

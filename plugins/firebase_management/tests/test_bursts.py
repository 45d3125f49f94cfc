"""Many changes at once, and any changes at all: what a consumer is told adds up to what the source holds."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from google.cloud.firestore import AsyncClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callboard import User
from callboard_firebase import BURST
from callboard_firebase_management import FirebaseManagement, NotificationListener, listener

from .consumer import Consumer

pytestmark = pytest.mark.anyio

MARK = "mark"
"""The document whose arrival ends a test: what was written before it has been told by then."""


def make_listener(service: FirebaseManagement, user: User) -> NotificationListener:
    made = NotificationListener()
    made.service = service
    return made


async def source(service: FirebaseManagement, user: User) -> dict[str, Any]:
    """What a fresh sync tells."""
    consumer = Consumer()
    for event in await make_listener(service, user).snapshot(user):
        consumer.take(event)
    return consumer.items


@asynccontextmanager
async def told(service: FirebaseManagement, user: User, *consumers: Consumer) -> AsyncIterator[None]:
    """Feeds the consumers what the listener yields, from its first sync on, until they have been told of the mark."""
    ready = asyncio.Event()

    async def read() -> None:
        async with aclosing(make_listener(service, user).changes(user)) as events:  # type: ignore[type-var]
            async for event in events:
                for consumer in consumers:
                    consumer.take(event)
                ready.set()
                if MARK in consumers[0].items:
                    return

    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        await ready.wait()
        yield


class Writer:
    """A user's notifications, as other programs write them."""

    def __init__(self, client: AsyncClient, user: User) -> None:
        self._client = client
        self._collection = client.collection(f"clients/{user.uid}/notifications")

    async def put(self, doc_id: str, *, read: bool = False, company: str | None = None, status: str = "new") -> None:
        fields = {"read": read, "status": status} | ({"collection_id": company} if company else {})
        await self._collection.document(doc_id).set(fields)

    async def delete(self, doc_id: str) -> None:
        await self._collection.document(doc_id).delete()

    async def put_at_once(self, doc_ids: list[str], **fields: Any) -> None:
        await self.change_at_once({doc_id: {"read": False, **fields} for doc_id in doc_ids})

    async def change_at_once(self, changes: Mapping[str, dict[str, Any] | None]) -> None:
        """In one commit; None deletes."""
        batch = self._client.batch()
        for doc_id, fields in changes.items():
            if fields is None:
                batch.delete(self._collection.document(doc_id))
            else:
                batch.set(self._collection.document(doc_id), fields)
        await batch.commit()


ADA = User(uid="ada")


async def storm(writer: Writer, changes: int, documents: int) -> None:
    """So many changes as fast as they are taken, ten in a commit: new ones, altered ones, read ones, deleted ones."""

    async def some(first: int) -> None:
        for start in range(first, changes, 40):
            await writer.change_at_once({f"n{number % documents}": one(number) for number in range(start, start + 10)})

    def one(number: int) -> dict[str, Any] | None:
        how = random.random()
        return None if how < 0.1 else {"read": how < 0.2, "status": f"s{number}"}

    async with asyncio.TaskGroup() as tasks:
        for part in range(4):
            tasks.create_task(some(10 * part))


async def test_a_burst_of_500_changes_is_few_events_and_the_right_state(
    service: FirebaseManagement, client: AsyncClient
) -> None:
    writer, consumer = Writer(client, ADA), Consumer()
    async with told(service, ADA, consumer):
        await storm(writer, 500, 150)
        await writer.put(MARK)
    assert consumer.items == await source(service, ADA)
    assert len(consumer.took) < 250
    assert consumer.took.count("notif.sync") > 1


async def test_without_a_bound_the_burst_is_told_change_by_change(
    service: FirebaseManagement, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: right too, but 500 events."""

    class Unbounded:
        async def told(self, changes: int) -> None: ...

    monkeypatch.setattr(listener, "BURST", 1_000_000)
    monkeypatch.setattr(listener, "Pace", Unbounded)
    writer, consumer = Writer(client, ADA), Consumer()
    async with told(service, ADA, consumer):
        for start in range(0, 500, 20):
            await writer.put_at_once([f"n{number}" for number in range(start, start + 20)])
        await writer.put(MARK)
    assert len(consumer.items) == 501
    assert (consumer.took.count("notif.sync"), len(consumer.took)) == (1, 502)


async def test_one_commit_of_many_is_one_sync(service: FirebaseManagement, client: AsyncClient) -> None:
    user = User(uid="ada", authorized_companies_ids=frozenset({"acme"}))
    writer, consumer = Writer(client, user), Consumer()
    await writer.put("old", company="acme")
    await writer.put("older", company="acme")
    async with told(service, user, consumer):
        await writer.delete("older")
        while "older" in consumer.items:
            await asyncio.sleep(0.01)
        await writer.put_at_once([f"n{number}" for number in range(BURST + 1)], collection_id="acme")
        # What the user may not see is no burst of theirs.
        await writer.put_at_once([f"x{number}" for number in range(400)], collection_id="other")
        await writer.put("n0", company="acme", status="altered")
        await writer.put("n1", company="other")
        await writer.put("x1", company="acme")
        await writer.put(MARK, company="acme")
    assert consumer.took[:3] == ["notif.sync", "notif.remove", "notif.sync"]
    # The listener knows what its sync showed: none of these is taken for something new, or missed.
    assert sorted(consumer.took[3:]) == ["notif.add", "notif.add", "notif.remove", "notif.update"]
    assert consumer.items == await source(service, user)
    assert len(consumer.items) == 1 + (BURST + 1) - 1 + 1 + 1


async def test_a_delta_older_than_a_sync_would_bring_back_what_is_gone(
    service: FirebaseManagement, client: AsyncClient
) -> None:
    """What `as_of` is for: a consumer that joins late gets its own sync, and then deltas from before it."""
    writer = Writer(client, ADA)
    heedful, heedless, slow = Consumer(), Consumer(heeds_as_of=False), NotificationListener()
    slow.service = service
    async with asyncio.timeout(20), aclosing(slow.changes(ADA)) as events:  # type: ignore[type-var]
        await anext(events)
        await writer.put("passing")
        late = await anext(events)
        assert late.type == "notif.add"
        await asyncio.sleep(0.002)  # times on the wire have milliseconds
        await writer.delete("passing")
        await writer.put("kept")
        [sync] = await slow.snapshot(ADA)
    for consumer in (heedful, heedless):
        consumer.take(sync)
        consumer.take(late)
    assert heedful.items == await source(service, ADA)
    assert heedless.items != heedful.items


async def test_what_came_and_went_untold_is_told_to_have_gone(service: FirebaseManagement, client: AsyncClient) -> None:
    """A consumer that joins meanwhile has it in a sync of its own."""
    writer, late = Writer(client, ADA), Consumer()
    async with asyncio.timeout(20), aclosing(make_listener(service, ADA).changes(ADA)) as events:  # type: ignore[type-var]
        await anext(events)
        await writer.put("passing")
        [sync] = await make_listener(service, ADA).snapshot(ADA)
        late.take(sync)
        await writer.delete("passing")
        await writer.put(MARK)
        assert late.items
        while MARK not in late.items:
            late.take(await anext(events))
    assert late.items == await source(service, ADA)


COMPANIES = [None, "acme", "other"]
NAMES = [f"n{number}" for number in range(5)]
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.booleans(), st.sampled_from(COMPANIES)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("burst"), st.sampled_from(COMPANIES), st.integers(BURST - 1, BURST + 2)),
    st.tuples(st.just("join")),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(COMPANIES)),
    steps=st.lists(STEPS, min_size=5, max_size=25),
    companies=st.sampled_from([None, frozenset[str](), frozenset({"acme"}), frozenset({"acme", "other"})]),
)
async def test_syncs_and_deltas_add_up_to_the_source(
    service: FirebaseManagement,
    client: AsyncClient,
    before: dict[str, str | None],
    steps: list[Any],
    companies: frozenset[str] | None,
) -> None:
    """Whatever happens, whatever the user may see, and whenever a consumer joins with a sync of its own."""
    seen = frozenset({*companies, "always"}) if companies is not None else None
    user = User(uid=secrets.token_hex(6), authorized_companies_ids=seen)
    writer, first, late = Writer(client, user), Consumer(), Consumer()
    for doc_id, company in before.items():
        await writer.put(doc_id, company=company)
    async with told(service, user, first, late):
        for number, step in enumerate(steps):
            match step:
                case ["put", doc_id, read, company]:
                    await writer.put(doc_id, read=read, company=company, status=f"s{number}")
                case ["delete", doc_id]:
                    await writer.delete(doc_id)
                case ["burst", company, size]:
                    await writer.put_at_once([f"b{each}" for each in range(size)], collection_id=company or "")
                case _:
                    [sync] = await make_listener(service, user).snapshot(user)
                    late.take(sync)
        await writer.put(MARK, company="always")
    fresh = await source(service, user)
    assert first.items == fresh
    assert late.items == fresh
    if seen is not None:
        assert {item["collection_id"] for item in fresh.values()} <= seen

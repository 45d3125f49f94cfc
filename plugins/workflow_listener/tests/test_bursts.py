"""Many changes at once, and any changes at all: what a consumer is told adds up to what the source holds."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from google.cloud.firestore import AsyncClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callboard import Event
from callboard.connections import Connections
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_firebase import BURST, Firebase, FirebaseSettings
from callboard_local import ValkeyServer
from callboard_workflow_listener import source as source_module
from callboard_workflow_listener.listening import Listening
from callboard_workflow_listener.source import Source
from callboard_workflow_listener.watched import WatchedJobs

from .consumer import Consumer

pytestmark = pytest.mark.anyio

MARK = "mark"
"""The job whose end ends a test: what was written before it is told before it, in one batch too."""


@pytest.fixture
async def watched(own_valkey: ValkeyServer) -> AsyncIterator[WatchedJobs]:
    settings = load(Settings, {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(own_valkey.port)})
    async with Connections(settings, Telemetry(replica="test")) as connections:
        yield WatchedJobs(connections)


@pytest.fixture
async def firebase(firestore_address: str, firestore_project: str) -> AsyncIterator[Firebase]:
    async with Firebase(FirebaseSettings(project_id=firestore_project, emulator_host=firestore_address)) as firebase:
        yield firebase


class User:
    """Their jobs, as other programs write them, and what is told of them."""

    def __init__(self, firebase: Firebase, watched: WatchedJobs) -> None:
        self.uid = secrets.token_hex(6)
        self._client: AsyncClient = firebase.client
        self._collection = firebase.client.collection(f"clients/{self.uid}/task_manager")
        self.source = Source(firebase)
        self.changes: list[Event] = []
        self.listening = Listening(self.uid, self.source, watched, self.changes.append)

    async def put(
        self, job_id: str, invoice: dict[str, Any] | None = None, steps: dict[str, Any] | None = None
    ) -> None:
        await self._collection.document(job_id).set(fields(invoice, steps))

    async def put_at_once(self, jobs: dict[str, dict[str, Any]]) -> None:
        batch = self._client.batch()
        for job_id, document in jobs.items():
            batch.set(self._collection.document(job_id), document)
        await batch.commit()

    async def count(self, job_id: str, step: str, count: int) -> None:
        await self._collection.document(job_id).update({f"APBookeeper_step_status.{step}": count})

    async def delete(self, job_id: str) -> None:
        await self._collection.document(job_id).delete()

    async def fresh(self) -> dict[str, Any]:
        """What a fresh sync tells."""
        consumer = Consumer()
        consumer.take_all(await self.source.read_collection(self.uid))
        return consumer.jobs


def fields(invoice: dict[str, Any] | None = None, steps: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"document": {"initial_data": invoice or {}}, "APBookeeper_step_status": steps or {}}


@asynccontextmanager
async def told(user: User, *consumers: Consumer) -> AsyncIterator[None]:
    """Feeds the consumers the first state and what follows, until they have been told of the mark's end."""
    await user.put(MARK, {"currency": "CHF"})
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(user.listening.changes()) as events:
            first = asyncio.create_task(user.listening.snapshot(), name="the first state")
            # As the core does: the stream is read while the snapshot is made.
            following = asyncio.create_task(anext(events), name="the first change")
            for consumer in consumers:
                consumer.take_all(await first)
            begun.set()
            event: Event = await following
            while True:
                for consumer in consumers:
                    consumer.take(event)
                if MARK not in consumers[0].jobs:
                    return
                event = await anext(events)

    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        await begun.wait()
        yield


async def test_500_changes_of_one_job_are_few_events_and_the_right_state(
    firebase: Firebase, watched: WatchedJobs
) -> None:
    user, consumer = User(firebase, watched), Consumer()
    await user.put("a", {"currency": "EUR"}, {"extract": 0})
    began = time.monotonic()
    async with told(user, consumer):
        async with asyncio.TaskGroup() as tasks:
            for part in range(4):
                tasks.create_task(_count_up(user, f"step{part}", 125))
        await user.delete(MARK)
    took_s = time.monotonic() - began
    assert consumer.jobs == await user.fresh()
    assert consumer.jobs["a"]["steps"] == {"extract": 0, **{f"step{part}": 124 for part in range(4)}}
    # Fifty a second; a server that takes the writes no faster than that leaves nothing to gather.
    assert len(consumer.took) < 100 + 55 * took_s


async def _count_up(user: User, step: str, times: int) -> None:
    for count in range(times):
        await user.count("a", step, count)


async def test_a_burst_over_many_jobs_is_one_event_for_each(firebase: Firebase, watched: WatchedJobs) -> None:
    user, consumer = User(firebase, watched), Consumer()
    jobs = [f"j{number}" for number in range(250)]
    await user.put_at_once({job: fields({"currency": "EUR"}, {"extract": 0}) for job in jobs})
    async with told(user, consumer):
        before = len(consumer.took)
        # 500 changes: of each job, both maps.
        await user.put_at_once({job: fields({"currency": "CHF"}, {"extract": 1}) for job in jobs})
        await user.delete(MARK)
    assert consumer.jobs == await user.fresh() | {job: consumer.jobs[job] for job in jobs}
    assert [consumer.jobs[job] for job in jobs] == [{"invoice": {"currency": "CHF"}, "steps": {"extract": 1}}] * 250
    assert [event.type for event in consumer.took[before:]] == ["workflow.sync"] * 251
    assert user.changes == []


@pytest.mark.parametrize("count", [BURST, BURST + 1])
async def test_fewer_are_told_by_what_changed_alone(firebase: Firebase, watched: WatchedJobs, count: int) -> None:
    user, consumer = User(firebase, watched), Consumer()
    jobs = [f"j{number}" for number in range(count)]
    await user.put_at_once({job: fields({"currency": "EUR"}, {"extract": 0}) for job in jobs})
    async with told(user, consumer):
        before = len(consumer.took)
        await user.put_at_once({job: fields({"currency": "CHF"}, {"extract": 1}) for job in jobs})
        await user.delete(MARK)
    assert consumer.jobs == await user.fresh()
    types = {event.type for event in consumer.took[before:] if event.job_id != MARK}
    deltas = {"workflow.invoice_update", "workflow.step_update"}
    assert types == (deltas if count <= BURST else {"workflow.sync"})


async def test_without_a_pace_every_change_is_told(
    firebase: Firebase, watched: WatchedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: right too, but an event a change."""

    class Unbounded:
        async def told(self, changes: int) -> None: ...

    monkeypatch.setattr(source_module, "Pace", Unbounded)
    user, consumer = User(firebase, watched), Consumer()
    await user.put("a", {"currency": "EUR"}, {"extract": 0})
    async with told(user, consumer):
        for count in range(1, 301):
            await user.count("a", "extract", count)
        await user.delete(MARK)
    assert consumer.jobs == await user.fresh()
    assert len(consumer.took) > 250


async def test_a_delta_older_than_a_sync_would_bring_back_what_is_gone(
    firebase: Firebase, watched: WatchedJobs
) -> None:
    """What `as_of` is for: a consumer that joins late gets its own sync, and then deltas from before it."""
    user, told_all = User(firebase, watched), Consumer()
    await user.put("a", steps={"extract": 0})
    async with told(user, told_all):
        for count in (1, 2):
            await user.count("a", "extract", count)
            await asyncio.sleep(0.002)  # times on the wire have milliseconds
            while told_all.jobs["a"]["steps"] != {"extract": count}:
                await asyncio.sleep(0.01)
        await user.delete(MARK)
    late = next(event for event in told_all.took if event.type == "workflow.step_update")
    for heeds in (True, False):
        consumer = Consumer(heeds_as_of=heeds)
        consumer.take_all([*await user.source.read_collection(user.uid), late])
        assert (consumer.jobs == await user.fresh()) is heeds


NAMES = [f"j{number}" for number in range(4)]
INVOICES = st.dictionaries(st.sampled_from(["currency", "sender", "unwatched"]), st.sampled_from(["x", "y", None]))
COUNTERS = st.dictionaries(st.sampled_from(["extract", "book"]), st.sampled_from([1, 2, None, "text"]))
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), INVOICES, COUNTERS),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("burst"), st.integers(BURST - 1, BURST + 2), INVOICES, COUNTERS),
    st.tuples(st.just("join")),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.dictionaries(st.sampled_from(NAMES), INVOICES), steps=st.lists(STEPS, min_size=5, max_size=20))
async def test_syncs_and_deltas_add_up_to_the_source(
    firebase: Firebase, watched: WatchedJobs, before: dict[str, dict[str, Any]], steps: list[Any]
) -> None:
    """Whatever happens, and whenever a consumer joins with a sync of its own."""
    user, first, late = User(firebase, watched), Consumer(), Consumer()
    for job_id, invoice in before.items():
        await user.put(job_id, invoice)
    async with told(user, first, late):
        for step in steps:
            match step:
                case ["put", job_id, invoice, counters]:
                    await user.put(job_id, invoice, counters)
                case ["delete", job_id]:
                    await user.delete(job_id)
                case ["burst", size, invoice, counters]:
                    await user.put_at_once({f"b{number}": fields(invoice, counters) for number in range(size)})
                case _:
                    late.take_all(await user.source.read_collection(user.uid))
        await user.delete(MARK)
    fresh = await user.fresh()
    assert first.jobs == fresh
    assert late.jobs == fresh

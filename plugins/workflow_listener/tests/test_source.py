"""One reading of a user's jobs, on a real Firestore."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from google.cloud.firestore_v1.types import Document, Value, Write

from callboard import DeadlineExceeded, InvalidArgs
from callboard_firebase import Firebase, FirebaseSettings
from callboard_workflow_listener import source as source_module
from callboard_workflow_listener.source import Source
from callboard_workflow_listener.tracker import MAX_SYNCED

if TYPE_CHECKING:
    from .conftest import Jobs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def firebase(firestore_address: str, firestore_project: str) -> AsyncIterator[Firebase]:
    async with Firebase(FirebaseSettings(project_id=firestore_project, emulator_host=firestore_address)) as firebase:
        yield firebase


@pytest.fixture
def source(firebase: Firebase) -> Source:
    return Source(firebase)


async def test_of_many_jobs_the_most_recent_are_read(source: Source, firebase: Firebase, jobs: Jobs, uid: str) -> None:
    batch = firebase.client.batch()
    for number in range(MAX_SYNCED + 5):
        batch.set(firebase.client.document(f"{jobs.path}/j{number}"), {"document": {"initial_data": {"sender": "A"}}})
    await batch.commit()
    await jobs.put("latest", {"sender": "B"})
    events = await source.read_collection(uid)
    assert len(events) == MAX_SYNCED
    assert events[0].payload == {"job_id": "latest", "invoice": {"sender": "B"}, "steps": {}}
    assert len({event.as_of for event in events}) == 1


async def test_malformed_documents_are_read_as_empty(source: Source, jobs: Jobs, uid: str) -> None:
    await jobs.put("text", document="text", APBookeeper_step_status="text")
    await jobs.put("empty")
    for event in await source.read_collection(uid):
        assert event.payload == {"job_id": event.job_id, "invoice": {}, "steps": {}}


async def test_a_user_without_jobs_has_no_events(source: Source, uid: str) -> None:
    assert await source.read_collection(uid) == []


async def test_an_id_that_could_leave_its_place_is_refused(source: Source, uid: str) -> None:
    with pytest.raises(InvalidArgs):
        await source.read_collection("..")
    with pytest.raises(InvalidArgs):
        await source.read_documents(uid, ["a/b"])


async def test_a_reference_into_another_database_costs_nobody_their_sync(
    source: Source, firebase: Firebase, jobs: Jobs, uid: str
) -> None:
    """Google's own decoder raises for one."""
    client = firebase.client
    foreign = "projects/other/databases/(default)/documents/clients/charles"
    data = Value(map_value={"fields": {"sender": Value(reference_value=foreign)}})
    document = Document(
        name=f"{client._database_string}/documents/{jobs.path}/odd",
        fields={"document": Value(map_value={"fields": {"initial_data": data}})},
    )
    await client._firestore_api.commit(
        request={"database": client._database_string, "writes": [Write(update=document)]}
    )
    await jobs.put("plain", {"sender": "Acme"})

    expected = {"odd": {"sender": foreign}, "plain": {"sender": "Acme"}}
    for events in (await source.read_collection(uid), await source.read_documents(uid, ["odd", "plain"])):
        assert {event.job_id: event.payload["invoice"] for event in events} == expected


async def test_watched_jobs_are_read_with_their_older_documents(source: Source, jobs: Jobs, uid: str) -> None:
    await jobs.put("a", {"currency": "EUR"})
    await jobs.put_older("a", {"sender": "Acme"})
    events = await source.read_documents(uid, ["none", "a"])
    assert [(event.job_id, event.payload["invoice"]) for event in events] == [
        ("a", {"currency": "EUR", "sender": "Acme"}),
        ("none", {}),
    ]
    assert all(event.as_of for event in events)


async def test_a_read_is_bounded(source: Source, uid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "READ_TIMEOUT_S", 0)
    with pytest.raises(DeadlineExceeded):
        await source.read_collection(uid)
    with pytest.raises(DeadlineExceeded):
        await source.read_documents(uid, ["a"])

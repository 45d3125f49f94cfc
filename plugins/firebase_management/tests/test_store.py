"""What the methods stand on: opening, health, and a Firestore that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.api_core.gapic_v1.method import DEFAULT
from google.cloud.firestore import Increment

from callboard import ConfigurationError, Unavailable
from callboard.errors import DeadlineExceeded, OutcomeUnknown
from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management.store import writing
from callboard_local.firestore_process import FirestoreProcess

pytestmark = pytest.mark.anyio


async def test_without_a_firebase_it_does_not_open(make_service: Callable[..., FirebaseManagement]) -> None:
    with pytest.raises(ConfigurationError, match="GOOGLE_PROJECT_ID"):
        await make_service().open()


async def test_health(service: FirebaseManagement) -> None:
    health = await service.health()

    assert health["status"] == "ok"
    assert health["read_ms"] >= 0
    assert health["listen"]["targets"] == 0


@pytest.fixture
async def own_firestore() -> AsyncIterator[FirestoreProcess]:
    async with FirestoreProcess() as server:
        yield server


@pytest.fixture
async def on_its_own(
    make_service: Callable[..., FirebaseManagement], own_firestore: FirestoreProcess, firestore_project: str
) -> FirebaseManagement:
    """A service on a Firestore that the test may kill."""
    service = make_service(GOOGLE_PROJECT_ID=firestore_project, FIRESTORE_EMULATOR_HOST=own_firestore.address)
    await service.open()
    return service


async def test_a_write_waits_for_a_firestore_that_is_away_for_a_moment(
    own_firestore: FirestoreProcess, on_its_own: FirebaseManagement
) -> None:
    await on_its_own.set_document("clients/ada", {"n": 1})
    await own_firestore.kill()

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        written = tasks.create_task(on_its_own.set_document("clients/ada", {"n": 2}))
        await own_firestore.restart()

    assert written.result() is True
    assert await on_its_own.get_document("clients/ada") == {"n": 2}


async def test_an_increment_is_sent_once_and_its_outcome_may_be_unknown(
    own_firestore: FirestoreProcess, on_its_own: FirebaseManagement
) -> None:
    await on_its_own.set_document("clients/ada", {"n": 1})
    await own_firestore.kill()

    with pytest.raises(OutcomeUnknown) as raised:
        await on_its_own.update_firebase_doc("clients/ada", {"n": {"$op": "increment", "by": 1}})

    assert raised.value.details == {"outcome": "unknown"}
    assert raised.value.retry_after_ms is None
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await on_its_own.health()


@pytest.mark.parametrize("fields", [{"n": Increment(1)}, {"a": {"b": {"n": Increment(1)}}}])
async def test_a_write_that_counts_is_not_repeated(fields: dict[str, Any]) -> None:
    with writing(fields) as retry:
        assert retry is None
    with pytest.raises(OutcomeUnknown), writing(fields):
        raise Unavailable


async def test_a_write_that_does_not_count_is_repeated() -> None:
    with writing({"n": 1, "a": {"b": [1]}}) as retry:
        assert retry is DEFAULT
    with pytest.raises(Unavailable), writing({"n": 1}):
        raise Unavailable

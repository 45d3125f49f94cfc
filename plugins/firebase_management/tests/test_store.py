"""What the methods stand on: opening, health, and a Firestore that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from google.api_core.gapic_v1.method import DEFAULT
from google.cloud.firestore import Increment

from callboard import Aborted, ConfigurationError, Unavailable
from callboard.errors import DeadlineExceeded, OutcomeUnknown
from callboard_firebase import Document, Read, get_document
from callboard_firebase_management import FirebaseManagement, store
from callboard_firebase_management.store import Revision, writing
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


Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
COUNTER = "counters/c1"


def one_more(found: Document | None) -> Revision:
    return {"n": found.data["n"] + 1 if found is not None else 1}


async def test_revisions_at_once_are_all_kept(service: FirebaseManagement, stored: Stored) -> None:
    reference = service.document(COUNTER)

    assert await asyncio.gather(*(service.revise(reference, one_more) for _ in range(6))) == [True] * 6

    assert await stored(COUNTER) == {"n": 6}


async def test_writers_that_only_read_first_would_lose_a_revision(service: FirebaseManagement, stored: Stored) -> None:
    """The negative control: the same without the precondition."""
    everyone_has_read = asyncio.Barrier(2)

    async def revise() -> None:
        read = await get_document(service.client, COUNTER)
        await everyone_has_read.wait()
        found = read.document
        await service.put(service.document(COUNTER), {"n": found.data["n"] + 1 if found is not None else 1})

    await asyncio.gather(revise(), revise())

    assert await stored(COUNTER) == {"n": 1}


async def test_a_revision_may_delete_or_leave_the_document(service: FirebaseManagement, stored: Stored) -> None:
    reference = service.document(COUNTER)

    assert await service.revise(reference, lambda found: "delete") is False
    assert await service.revise(reference, lambda found: None) is False
    await service.revise(reference, one_more)
    assert await service.revise(reference, lambda found: None) is False
    assert await stored(COUNTER) == {"n": 1}
    assert await service.revise(reference, lambda found: "delete") is True
    assert await stored(COUNTER) is None


async def test_a_document_that_changes_again_and_again(
    service: FirebaseManagement, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REVISION_BACK_OFF_S", (0, 0))
    reference = service.document(COUNTER)
    asked = 0

    async def read_and_change(client: Any, path: str) -> Read:
        read = await get_document(client, path)
        await service.put(reference, {"n": asked})
        return read

    def decide(found: Document | None) -> Revision:
        nonlocal asked
        asked += 1
        return {"n": -1}

    monkeypatch.setattr(store, "get_document", read_and_change)
    with pytest.raises(Aborted):
        await service.revise(reference, decide)

    assert asked == store.REVISIONS
    assert (await stored(COUNTER) or {})["n"] == store.REVISIONS - 1


async def test_a_revision_that_counts_is_not_tried_again(
    own_firestore: FirestoreProcess, on_its_own: FirebaseManagement, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    async def read_and_kill(client: Any, path: str) -> Read:
        nonlocal reads
        reads += 1
        read = await get_document(client, path)
        await own_firestore.kill()
        return read

    await on_its_own.set_document(COUNTER, {"n": 1})
    monkeypatch.setattr(store, "get_document", read_and_kill)
    with pytest.raises(OutcomeUnknown):
        await on_its_own.revise(on_its_own.document(COUNTER), lambda found: {"n": Increment(1)})
    assert reads == 1


@pytest.mark.parametrize(
    ("data", "repeatable"),
    [
        ({"n": 1, "at": {"$op": "server_timestamp"}, "tags": {"$op": "array_union", "values": ["a"]}}, True),
        ({"n": {"$op": "increment", "by": 1}}, False),
        ({"a": {"b": {"n": {"$op": "increment", "by": 1}}}}, False),
    ],
)
def test_what_counts_is_not_retry_safe(data: dict[str, Any], repeatable: bool) -> None:
    for name, _, declared in FirebaseManagement().methods():
        if declared.retry_safe is store.repeatable:
            assert declared.is_retry_safe({"data": data}) is repeatable, name


def test_every_retry_safe_write_of_data_looks_for_what_counts() -> None:
    # Inside an array an increment is refused; of a Stripe event the id is all that is read.
    for name, function, declared in FirebaseManagement().methods():
        if name == "process_stripe_webhook":
            continue
        *hints, _ = [str(hint) for hint in function.__annotations__.values()]
        if declared.retry_safe and any("dict[" in hint.partition("list[")[0] or "Fields" in hint for hint in hints):
            assert declared.retry_safe is store.repeatable, name

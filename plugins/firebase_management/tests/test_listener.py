"""The listener: its sync, its deltas, and what it leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, cast

import pytest
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.types import Document, Value, Write

from callboard import Event, User
from callboard.events.bus import MAX_EVENT_BYTES
from callboard.messages import encode
from callboard_firebase_management import FirebaseManagement, NotificationListener, listener

pytestmark = pytest.mark.anyio

Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
Next: TypeAlias = Callable[[], Awaitable[Event]]
Listen: TypeAlias = Callable[[User], Awaitable[Next]]
NOTIFICATIONS = "clients/ada/notifications"
START = datetime(2025, 9, 20, tzinfo=UTC)
ADA = User(uid="ada")
ADA_AT_ACME = User(uid="ada", authorized_companies_ids=frozenset({"acme"}))


def make_listener(service: FirebaseManagement) -> NotificationListener:
    made = NotificationListener()
    made.service = service
    return made


@pytest.fixture
async def listen(service: FirebaseManagement) -> AsyncIterator[Listen]:
    """Starts a listener for a user; `await next()` is its next event."""
    async with AsyncExitStack() as stack:

        async def start(user: User) -> Next:
            changes = cast("AsyncGenerator[Event, None]", make_listener(service).changes(user))
            await stack.enter_async_context(aclosing(changes))
            return lambda: asyncio.wait_for(anext(changes), 20)

        yield start


def shown(sync: Event) -> list[str]:
    return [item["doc_id"] for item in sync.payload["notifications"]]


async def test_snapshot(service: FirebaseManagement, store: Store) -> None:
    for n in range(3):
        await store(f"{NOTIFICATIONS}/n{n}", {"read": n == 1, "timestamp": START + timedelta(minutes=n)})
    await store("clients/charles/notifications/other", {"read": False})

    [sync] = await make_listener(service).snapshot(ADA)

    assert (sync.type, sync.uid) == ("notif.sync", "ada")
    assert shown(sync) == ["n2", "n0"]
    assert sync.payload["count"] == 2
    assert sync.payload["timestamp"] == sync.as_of
    assert sync.as_of is not None
    assert datetime.fromisoformat(sync.as_of).tzinfo is not None
    assert len(sync.as_of) == len("2025-09-20T11:44:00.000Z")


async def test_snapshot_of_nothing_has_a_read_time(service: FirebaseManagement) -> None:
    [sync] = await make_listener(service).snapshot(ADA)

    assert (shown(sync), sync.payload["count"]) == ([], 0)
    assert sync.as_of is not None


async def test_sync_then_deltas(service: FirebaseManagement, store: Store, client: AsyncClient, listen: Listen) -> None:
    await store(f"{NOTIFICATIONS}/old", {"read": False, "file_name": "old.pdf"})
    next_event = await listen(ADA)

    sync = await next_event()
    assert (sync.type, shown(sync), sync.payload["count"]) == ("notif.sync", ["old"], 1)

    await service.add_or_update_job_by_job_id(NOTIFICATIONS, {"job_id": "new", "read": False, "status": "running"})
    add = await next_event()
    assert (add.type, add.uid, add.payload["doc_id"], add.payload["status"]) == ("notif.add", "ada", "new", "running")

    await service.update_job_status("ada", "new", "completed", {"message": "done"})
    update = await next_event()
    assert (update.type, update.payload["message"]) == ("notif.update", "Document - completed")
    assert (update.payload["additional_info"], update.payload["info_message"]) == ('{"message":"done"}', "done")

    await client.document(f"{NOTIFICATIONS}/new").update({"read": True})
    remove = await next_event()
    assert (remove.type, remove.payload) == ("notif.remove", {"doc_id": "new"})

    await client.document(f"{NOTIFICATIONS}/new").update({"read": False})
    assert (await next_event()).type == "notif.add"

    await client.document(f"{NOTIFICATIONS}/old").delete()
    gone = await next_event()
    assert (gone.type, gone.payload) == ("notif.remove", {"doc_id": "old"})


async def test_deltas_are_not_older_than_the_sync_before_them(store: Store, listen: Listen) -> None:
    next_event = await listen(ADA)
    sync = await next_event()
    await store(f"{NOTIFICATIONS}/n1", {"read": False})
    add = await next_event()

    assert sync.as_of is not None
    assert sync.as_of <= add.timestamp
    assert len(add.timestamp) == len("2025-09-20T11:44:00.000Z")


async def test_a_first_snapshot_is_no_flood(store: Store, listen: Listen) -> None:
    for n in range(20):
        await store(f"{NOTIFICATIONS}/n{n}", {"read": False})
    next_event = await listen(ADA)

    assert len(shown(await next_event())) == 20
    await store(f"{NOTIFICATIONS}/last", {"read": False})
    last = await next_event()
    assert (last.type, last.payload["doc_id"]) == ("notif.add", "last")


async def test_companies_the_user_may_not_see(
    service: FirebaseManagement, store: Store, client: AsyncClient, listen: Listen
) -> None:
    await store(f"{NOTIFICATIONS}/ours", {"read": False, "collection_id": "acme"})
    await store(f"{NOTIFICATIONS}/theirs", {"read": False, "collection_id": "other"})
    await store(f"{NOTIFICATIONS}/nobodys", {"read": False})
    next_event = await listen(ADA_AT_ACME)

    for sync in (await next_event(), *await make_listener(service).snapshot(ADA_AT_ACME)):
        assert (shown(sync), sync.payload["count"]) == (["ours"], 1)

    # What happens to the others stays unseen: the next event is the one about `mark`.
    await client.document(f"{NOTIFICATIONS}/theirs").update({"status": "changed"})
    await store(f"{NOTIFICATIONS}/more", {"read": False, "collection_id": "other"})
    await client.document(f"{NOTIFICATIONS}/nobodys").delete()
    await store(f"{NOTIFICATIONS}/mark", {"read": False, "collection_id": "acme"})
    mark = await next_event()
    assert (mark.type, mark.payload["doc_id"]) == ("notif.add", "mark")

    # One that changes hands comes or goes.
    await client.document(f"{NOTIFICATIONS}/theirs").update({"collection_id": "acme"})
    come = await next_event()
    assert (come.type, come.payload["doc_id"]) == ("notif.add", "theirs")
    await client.document(f"{NOTIFICATIONS}/ours").update({"collection_id": "other"})
    gone = await next_event()
    assert (gone.type, gone.payload) == ("notif.remove", {"doc_id": "ours"})


async def test_malformed_documents_do_not_end_the_stream(
    service: FirebaseManagement, store: Store, client: AsyncClient, listen: Listen
) -> None:
    odd = {
        "read": False,
        "status": {"a": [1]},
        "timestamp": "yesterday",
        "file_name": b"\xff",
        "additional_info": {"message": None, "deep": [{"at": START}], "friend": client.document("clients/charles")},
        "collection_id": float("nan"),
    }
    await store(f"{NOTIFICATIONS}/odd", odd)
    next_event = await listen(ADA)

    for sync in (await next_event(), *await make_listener(service).snapshot(ADA)):
        assert shown(sync) == ["odd"]
        encode(sync)
    await store(f"{NOTIFICATIONS}/odd2", odd)
    add = await next_event()
    assert (add.type, add.payload["message"]) == ("notif.add", "Document - info")
    encode(add)


async def test_ids_are_the_same_from_two_replicas_and_differ_between_events(
    store: Store, client: AsyncClient, listen: Listen
) -> None:
    one, other = await listen(ADA), await listen(ADA)
    await asyncio.gather(one(), other())
    document = client.document(f"{NOTIFICATIONS}/n1")
    seen = []
    for change in (
        document.set({"read": False}),
        document.update({"status": "changed"}),
        document.update({"read": True}),
        document.update({"read": False}),
        document.delete(),
    ):
        await change
        first, second = await asyncio.gather(one(), other())
        assert (first.type, first.id) == (second.type, second.id)
        seen.append(first.id)

    assert len(set(seen)) == len(seen)
    assert all(seen)


async def test_the_sync_is_bounded(
    service: FirebaseManagement, store: Store, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "SYNC_LIMIT", 2)
    for n in range(4):
        await store(f"{NOTIFICATIONS}/n{n}", {"read": False, "timestamp": START + timedelta(minutes=n)})
    next_event = await listen(ADA)

    for sync in (await next_event(), *await make_listener(service).snapshot(ADA)):
        assert (shown(sync), sync.payload["count"]) == (["n3", "n2"], 4)


async def test_closing_ends_the_watch(service: FirebaseManagement) -> None:
    changes = cast("AsyncGenerator[Event, None]", make_listener(service).changes(ADA))
    async with aclosing(changes):
        await asyncio.wait_for(anext(changes), 20)
        assert service.firebase.listen.stats().targets == 1
    assert service.firebase.listen.stats().targets == 0


async def test_a_reference_into_another_project_does_not_end_the_stream(
    service: FirebaseManagement, client: AsyncClient, listen: Listen
) -> None:
    """Google's own decoder raises for one."""
    foreign = Value(reference_value="projects/other/databases/(default)/documents/clients/charles")
    document = Document(
        name=f"{client._database_string}/documents/{NOTIFICATIONS}/n1",
        fields={"read": Value(boolean_value=False), "friend": foreign, "file_name": foreign},
    )
    await client._firestore_api.commit(
        request={"database": client._database_string, "writes": [Write(update=document)]}
    )
    next_event = await listen(ADA)

    for sync in (await next_event(), *await make_listener(service).snapshot(ADA)):
        assert shown(sync) == ["n1"]
    assert (await service.get_unread_notifications("ada"))[0]["doc_id"] == "n1"
    found = await service.get_document(f"{NOTIFICATIONS}/n1")
    assert found is not None
    assert found["friend"].endswith("clients/charles")


async def test_many_ordinary_notifications_fit_into_one_sync(
    service: FirebaseManagement, client: AsyncClient, listen: Listen
) -> None:
    batch = client.batch()
    for n in range(450):
        fields = {
            "read": False,
            "job_id": f"acme-2025-09-20-job-{n:05}",
            "file_id": "1a2b3c4d5e6f7g8h9i0j1k2l3m4n5o6p",
            "file_name": f"Facture Fournisseur SA 2025-{n}.pdf",
            "collection_id": "acme_space_id_d93472",
            "collection_name": "Boulangerie du Lac Sàrl",
            "function_name": "APbookeeper",
            "status": "completed",
            "timestamp": START + timedelta(minutes=n),
            "additional_info": '{"message": "Invoice booked on account 6000, please review the VAT code first"}',
        }
        batch.set(client.document(f"{NOTIFICATIONS}/acme-2025-09-20-job-{n:05}"), fields)
    await batch.commit()
    next_event = await listen(ADA)

    for sync in (await next_event(), *await make_listener(service).snapshot(ADA)):
        assert 150 * 1024 < len(encode(sync)) < MAX_EVENT_BYTES - 10_000
        newest = [f"acme-2025-09-20-job-{449 - n:05}" for n in range(len(shown(sync)))]
        assert shown(sync) == newest
        assert len(newest) < 450
        assert sync.payload["count"] == 450


async def test_huge_documents_are_told_all_the_same(
    service: FirebaseManagement, store: Store, client: AsyncClient, listen: Listen
) -> None:
    huge = "x" * 450_000
    for n in range(3):
        await store(f"{NOTIFICATIONS}/n{n}", {"read": False, "additional_info": huge})
    next_event = await listen(ADA)

    for sync in (await next_event(), *await make_listener(service).snapshot(ADA)):
        assert sorted(shown(sync)) == ["n0", "n1", "n2"]
        assert len(encode(sync)) < MAX_EVENT_BYTES
    await client.document(f"{NOTIFICATIONS}/n0").update({"status": huge})
    update = await next_event()
    assert update.type == "notif.update"
    assert update.payload["status"].endswith("x…")
    assert len(encode(update)) < MAX_EVENT_BYTES

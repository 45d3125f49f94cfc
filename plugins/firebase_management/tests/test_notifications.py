"""A user's notifications: gets and deletes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import pytest

from callboard import InvalidArgs
from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management.store import FirestoreService

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
NOTIFICATIONS = "clients/ada/notifications"
START = datetime(2025, 9, 20, tzinfo=UTC)


def ids(items: list[Any]) -> list[str]:
    return [item["doc_id"] for item in items]


@pytest.fixture
async def six(store: Store) -> None:
    """n0 … n5, one a minute, the even ones read."""
    for n in (3, 0, 5, 1, 4, 2):
        at = START + timedelta(minutes=n)
        await store(f"{NOTIFICATIONS}/n{n}", {"read": n % 2 == 0, "timestamp": at, "file_name": f"{n}.pdf"})
    await store("clients/charles/notifications/other", {"read": False, "timestamp": START})


@pytest.mark.usefixtures("six")
async def test_get_newest_first(service: FirebaseManagement) -> None:
    items = await service.get_notifications("ada")

    assert ids(items) == ["n5", "n4", "n3", "n2", "n1", "n0"]
    assert items[0]["message"] == "5.pdf - info"
    assert items[0]["timestamp"] == "2025-09-20T00:05:00.000Z"


@pytest.mark.usefixtures("six")
async def test_get_with_a_filter_and_a_limit(service: FirebaseManagement) -> None:
    assert ids(await service.get_notifications("ada", limit=2)) == ["n5", "n4"]
    assert ids(await service.get_notifications("ada", read=False)) == ["n5", "n3", "n1"]
    assert ids(await service.get_notifications("ada", False, 2)) == ["n5", "n3"]
    assert ids(await service.get_notifications("ada", read=True)) == ["n4", "n2", "n0"]
    assert ids(await service.get_notifications("ada", True, 1)) == ["n4"]
    assert ids(await service.get_unread_notifications("ada")) == ["n5", "n3", "n1"]
    assert ids(await service.get_unread_notifications("ada", limit=1)) == ["n5"]
    assert await service.get_notifications("nobody") == []
    assert await service.get_unread_notifications("nobody") == []


async def test_get_malformed_documents(service: FirebaseManagement, store: Store) -> None:
    await store(f"{NOTIFICATIONS}/odd", {"read": False, "status": [1], "timestamp": {"odd": 1}, "file_name": None})
    await store(f"{NOTIFICATIONS}/bare", {"read": False})
    await store(f"{NOTIFICATIONS}/text", {"read": "false", "timestamp": START})

    assert ids(await service.get_unread_notifications("ada")) == ["bare", "odd"]
    assert set(ids(await service.get_notifications("ada"))) == {"bare", "odd", "text"}


@pytest.mark.usefixtures("six")
async def test_get_those_without_a_timestamp_where_there_is_room(service: FirebaseManagement, store: Store) -> None:
    for doc_id, read in (("a", False), ("b", True), ("z", True)):
        await store(f"{NOTIFICATIONS}/{doc_id}", {"read": read})  # later than all the others, by the last write

    with_time = ["n5", "n4", "n3", "n2", "n1", "n0"]
    assert ids(await service.get_notifications("ada")) == ["z", "b", "a", *with_time]
    assert ids(await service.get_notifications("ada", read=True)) == ["z", "b", "n4", "n2", "n0"]
    assert ids(await service.get_notifications("ada", limit=7)) == ["b", "a", *with_time[:5]]  # z: too far by its id
    for limit in (1, 6):
        assert ids(await service.get_notifications("ada", limit=limit)) == with_time[:limit]


@pytest.mark.usefixtures("six")
async def test_delete_all_in_batches(
    service: FirebaseManagement, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FirestoreService.delete_found, "__defaults__", (2,))

    assert await service.delete_notifications("ada") == 6
    assert await service.delete_notifications("ada") == 0

    assert await service.get_notifications("ada") == []
    assert await stored("clients/charles/notifications/other") is not None


@pytest.mark.usefixtures("six")
async def test_delete_those_of_a_job(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    for doc_id, job_id in (("j1", "j1"), ("f1", "j1"), ("f2", "j1"), ("j2", "j2")):
        await store(f"{NOTIFICATIONS}/{doc_id}", {"job_id": job_id, "timestamp": START})

    assert await service.delete_notifications("ada", "j1") == 3
    assert await service.delete_notifications("ada", "n0") == 1
    assert await service.delete_notifications("ada", "none") == 0

    assert sorted(ids(await service.get_notifications("ada"))) == ["j2", "n1", "n2", "n3", "n4", "n5"]


@pytest.mark.parametrize("user_id", ["", "a/b", "..", "__a__", "a b", "x" * 200])
async def test_bad_users(service: FirebaseManagement, user_id: str) -> None:
    for call in (
        service.get_notifications(user_id),
        service.get_unread_notifications(user_id),
        service.delete_notifications(user_id),
    ):
        with pytest.raises(InvalidArgs):
            await call
    with pytest.raises(InvalidArgs):
        await service.delete_notifications("ada", "a/b")


async def test_newest_first_whatever_kind_the_timestamps_are(service: FirebaseManagement, store: Store) -> None:
    """Firestore sorts texts above times, however old they are."""
    for n in range(6):
        at = START + timedelta(minutes=n)
        await store(f"{NOTIFICATIONS}/n{n}", {"read": True, "timestamp": at if n % 2 else at.isoformat()})

    for read in (None, True):
        assert ids(await service.get_notifications("ada", read)) == ["n5", "n4", "n3", "n2", "n1", "n0"]
        for limit in (1, 2, 3, 4, 5):
            newest = await service.get_notifications("ada", read, limit)
            assert ids(newest) == ["n5", "n4", "n3", "n2", "n1"][:limit]

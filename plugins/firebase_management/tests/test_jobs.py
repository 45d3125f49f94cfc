"""Jobs: upserts by id, their event, and the status of a job."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest

from callboard import InvalidArgs
from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management.jobs import user_of_notifications

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
NOTIFICATIONS = "clients/ada/notifications"


def upsert(service: FirebaseManagement, field: str) -> Callable[[str, dict[str, Any]], Awaitable[str]]:
    return {
        "job_id": service.add_or_update_job_by_job_id,
        "file_id": service.add_or_update_job_by_file_id,
        "batch_id": service.add_or_update_job_by_batch_id,
    }[field]


@pytest.mark.parametrize("field", ["job_id", "file_id", "batch_id"])
async def test_upsert_merges_and_leaves_the_callers_dict_alone(
    service: FirebaseManagement, stored: Stored, field: str
) -> None:
    first = {field: "x1", "status": "running", "read": False, "info": {"a": 1}, "timestamp": "1999-12-31"}
    second = {field: "x1", "status": "completed", "info": {"b": {"$op": "increment", "by": 2}}}
    before = copy.deepcopy([first, second])

    assert await upsert(service, field)(NOTIFICATIONS, first) == "x1"
    assert await upsert(service, field)(NOTIFICATIONS, second) == "x1"

    assert [first, second] == before
    found = await stored(f"{NOTIFICATIONS}/x1")
    assert found is not None
    assert isinstance(found.pop("timestamp"), datetime)
    assert found == {field: "x1", "status": "completed", "read": False, "info": {"a": 1, "b": 2}}


@pytest.mark.parametrize("field", ["job_id", "file_id", "batch_id"])
@pytest.mark.parametrize("value", [None, "", "a/b", ".", "..", "__a__", 7, True, ["x"], {"$op": "server_timestamp"}])
async def test_upsert_refuses_an_id_that_names_no_document(
    service: FirebaseManagement, bus: Any, field: str, value: Any
) -> None:
    with pytest.raises(InvalidArgs):
        await upsert(service, field)(NOTIFICATIONS, {field: value, "status": "running"})
    assert bus.events == []


@pytest.mark.parametrize(
    "path", ["", "clients/ada", "/clients", "clients/ada/notifications/", "clients/a b/notifications"]
)
async def test_upsert_refuses_a_path_that_names_no_collection_or_user(
    service: FirebaseManagement, bus: Any, path: str
) -> None:
    with pytest.raises(InvalidArgs):
        await service.add_or_update_job_by_job_id(path, {"job_id": "j1"})
    assert bus.events == []


async def test_upsert_publishes_job_updated(service: FirebaseManagement, bus: Any) -> None:
    job = {"job_id": "j1", "status": "completed", "batch_id": "b1", "function_name": "Router", "file_id": "f1", "n": 1}
    await service.add_or_update_job_by_job_id(NOTIFICATIONS, job)
    await service.add_or_update_job_by_file_id(NOTIFICATIONS, {"file_id": "f2"})

    assert [(event.type, event.uid, event.payload) for event in bus.events] == [
        (
            "notif.job_updated",
            "ada",
            {
                "job_id": "j1",
                "status": "completed",
                "collection_path": NOTIFICATIONS,
                "batch_id": "b1",
                "function_name": "Router",
                "file_id": "f1",
            },
        ),
        (
            "notif.job_updated",
            "ada",
            {"job_id": "f2", "status": None, "collection_path": NOTIFICATIONS, "file_id": "f2"},
        ),
    ]


async def test_a_new_notification_is_unread_and_a_read_one_stays_read(
    service: FirebaseManagement, stored: Stored
) -> None:
    async def is_read(job: dict[str, Any]) -> Any:
        await service.add_or_update_job_by_job_id(NOTIFICATIONS, job)
        return (await stored(f"{NOTIFICATIONS}/{job['job_id']}") or {})["read"]

    assert await is_read({"job_id": "new"}) is False
    assert await is_read({"job_id": "new", "read": True}) is True
    assert await is_read({"job_id": "new", "status": "completed"}) is True
    assert await is_read({"job_id": "other", "read": True}) is True


async def test_upsert_elsewhere_publishes_nothing(service: FirebaseManagement, stored: Stored, bus: Any) -> None:
    assert await service.add_or_update_job_by_job_id("clients/ada/task_manager", {"job_id": "j1"}) == "j1"

    assert await stored("clients/ada/task_manager/j1") is not None
    assert bus.events == []


async def test_a_write_that_fails_is_an_error_and_publishes_nothing(
    service: FirebaseManagement, stored: Stored, bus: Any
) -> None:
    too_large = {"job_id": "j1", "text": "x" * 1_100_000}  # a document holds 1 MiB

    with pytest.raises(InvalidArgs):
        await service.add_or_update_job_by_job_id(NOTIFICATIONS, too_large)

    assert await stored(f"{NOTIFICATIONS}/j1") is None
    assert bus.events == []


async def test_the_write_stands_when_the_event_cannot_be_published(
    service: FirebaseManagement, stored: Stored, bus: Any, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    bus.away = True

    assert await service.add_or_update_job_by_job_id(NOTIFICATIONS, {"job_id": "j1", "status": "secret"}) == "j1"

    assert await stored(f"{NOTIFICATIONS}/j1") is not None
    [line] = [line for line in log_lines() if line["event"] == "publish_failed"]
    assert (line["level"], line["type"], line["code"]) == ("warning", "notif.job_updated", "UNAVAILABLE")
    assert "secret" not in str(line)


@pytest.mark.parametrize(
    ("path", "uid"),
    [
        ("clients/ada/notifications", "ada"),
        ("clients/ada/bo_clients/b1/notifications", "ada"),
        ("clients/ada/task_manager", None),
        ("clients/notifications/task_manager", None),
        ("notifications", None),
        ("mandates/m1/notifications", None),
    ],
)
async def test_user_of_notifications(path: str, uid: str | None) -> None:
    assert user_of_notifications(path) == uid


async def test_check_status_of_a_document_named_by_the_id(service: FirebaseManagement, store: Store) -> None:
    await store(f"{NOTIFICATIONS}/j1", {"status": "running"})
    await store(f"{NOTIFICATIONS}/f1", {"status": "queued"})

    assert await service.check_job_status("ada", "j1") == "running"
    assert await service.check_job_status("ada", file_id="f1") == "queued"
    assert await service.check_job_status("ada", job_id="j1", file_id="f1") == "running"
    assert await service.check_job_status("ada", job_id="none", file_id="f1") == "queued"


async def test_check_status_finds_the_newest_document_with_the_field(service: FirebaseManagement, store: Store) -> None:
    await store(f"{NOTIFICATIONS}/a", {"file_id": "f1", "status": "old", "timestamp": datetime(2020, 1, 1, tzinfo=UTC)})
    await store(f"{NOTIFICATIONS}/b", {"file_id": "f1", "status": "new", "timestamp": datetime(2025, 1, 1, tzinfo=UTC)})
    await store(f"{NOTIFICATIONS}/c", {"file_id": "f1", "status": "odd", "timestamp": "2021-01-01T00:00:00Z"})
    await store("clients/charles/notifications/d", {"file_id": "f2", "status": "another user's"})

    assert await service.check_job_status("ada", file_id="f1") == "new"
    assert await service.check_job_status("ada", file_id="f2") is None


async def test_check_status_without_a_job_or_a_status(service: FirebaseManagement, store: Store) -> None:
    await store(f"{NOTIFICATIONS}/j1", {"status": {"odd": 1}})
    await store(f"{NOTIFICATIONS}/j2", {})

    assert await service.check_job_status("nobody", "j1") is None
    assert await service.check_job_status("ada", "j1") is None
    assert await service.check_job_status("ada", "j2") is None


async def test_update_status(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    await store(f"{NOTIFICATIONS}/j1", {"status": "running", "additional_info": {"a": 1}, "n": 1})
    info = {"message": "done"}

    assert await service.update_job_status("ada", "j1", "halfway") is True
    found = await stored(f"{NOTIFICATIONS}/j1")
    assert found is not None
    assert isinstance(found.pop("timestamp"), datetime)
    assert found == {"status": "halfway", "additional_info": {"a": 1}, "n": 1}

    assert await service.update_job_status("ada", "j1", "completed", info) is True
    found = await stored(f"{NOTIFICATIONS}/j1")
    assert found is not None
    assert (found["status"], found["additional_info"], info) == ("completed", info, {"message": "done"})


async def test_update_status_of_a_document_with_another_name(
    service: FirebaseManagement, store: Store, stored: Stored
) -> None:
    await store(f"{NOTIFICATIONS}/f1", {"job_id": "j1", "status": "running"})

    assert await service.update_job_status("ada", "j1", "completed", "free text") is True

    found = await stored(f"{NOTIFICATIONS}/f1")
    assert found is not None
    assert (found["status"], found["additional_info"]) == ("completed", "free text")
    assert await stored(f"{NOTIFICATIONS}/j1") is None


async def test_update_status_without_a_job(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.update_job_status("ada", "j1", "completed") is False
    assert await stored(f"{NOTIFICATIONS}/j1") is None


async def test_bad_ids(service: FirebaseManagement) -> None:
    for call in (
        service.check_job_status("ada"),
        service.check_job_status("ada", "a/b"),
        service.check_job_status("ada", file_id=""),
        service.check_job_status("a/b", "j1"),
        service.check_job_status("..", "j1"),
        service.update_job_status("", "j1", "completed"),
        service.update_job_status("ada", "a/b", "completed"),
        service.update_job_status("ada", "j1", "completed", {"x": [[1]]}),
    ):
        with pytest.raises(InvalidArgs):
            await call

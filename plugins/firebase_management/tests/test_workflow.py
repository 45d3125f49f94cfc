"""Workflow documents: their parts, restart, batches, and the end of jobs."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest

from callboard import InvalidArgs
from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management.store import DELETE_BATCH

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
Paths: TypeAlias = Callable[[str], Awaitable[list[str]]]
JOB = "clients/ada/task_manager/j1"
OLDER = f"{JOB}/document/initial_data"


async def test_upload_merges_into_the_map_that_is_watched(
    service: FirebaseManagement, store: Store, stored: Stored
) -> None:
    await store(
        JOB, {"status": "running", "document": {"pages": 2, "initial_data": {"currency": "EUR", "due": {"a": 1}}}}
    )
    invoice = {"currency": "CHF", "due": {"b": 2}, "odd.name": "x", "sender": {"$op": "delete"}}
    before = copy.deepcopy(invoice)

    assert await service.upload_document_to_task_job_id("ada", "j1", invoice) is True

    assert invoice == before
    assert await stored(JOB) == {
        "status": "running",
        "document": {"pages": 2, "initial_data": {"currency": "CHF", "due": {"a": 1, "b": 2}, "odd.name": "x"}},
    }


async def test_download_gives_what_was_uploaded(service: FirebaseManagement) -> None:
    assert await service.download_document_to_task_job_id("ada", "j1") is None

    invoice = {"currency": "CHF", "totalAmountDueVATIncluded": 1_250.5, "VATPercentages": [7.7], "sender": None}
    await service.upload_document_to_task_job_id("ada", "j1", invoice)

    assert await service.download_document_to_task_job_id("ada", "j1") == invoice
    assert await service.download_document_to_task_job_id("charles", "j1") is None


@pytest.mark.parametrize(
    "older",
    [
        {"currency": "EUR", "sender": "ACME", "invoiceDate": datetime(2025, 9, 20, tzinfo=UTC)},
        {"initial_data": {"currency": "EUR", "sender": "ACME", "invoiceDate": datetime(2025, 9, 20, tzinfo=UTC)}},
        {"sender": "ACME", "initial_data": {"currency": "EUR", "invoiceDate": datetime(2025, 9, 20, tzinfo=UTC)}},
    ],
)
async def test_download_reads_what_older_writers_wrote(
    service: FirebaseManagement, store: Store, older: dict[str, Any]
) -> None:
    await store(OLDER, older)
    read = await service.download_document_to_task_job_id("ada", "j1")
    assert read == {"currency": "EUR", "sender": "ACME", "invoiceDate": "2025-09-20T00:00:00Z"}

    await service.upload_document_to_task_job_id("ada", "j1", {"currency": "CHF"})
    read = await service.download_document_to_task_job_id("ada", "j1")
    assert read == {"currency": "CHF", "sender": "ACME", "invoiceDate": "2025-09-20T00:00:00Z"}


async def test_download_of_a_job_without_an_invoice(service: FirebaseManagement, store: Store) -> None:
    await store(JOB, {"document": "not a map", "status": "running"})
    assert await service.download_document_to_task_job_id("ada", "j1") is None


async def test_steps(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    assert await service.download_invoice_step("ada", "j1") is None

    assert await service.upload_invoice_step("ada", "j1", {"extract": 3, "validate": 1, "post": 1}) is True
    steps = {"validate": {"$op": "increment", "by": 2}, "post": {"$op": "delete"}, "check": 0.5}
    assert await service.upload_invoice_step("ada", "j1", steps) is True

    expected = {"extract": 3, "validate": 3, "check": 0.5}
    assert await service.download_invoice_step("ada", "j1") == expected
    assert await stored(JOB) == {"APBookeeper_step_status": expected}

    for odd in ({}, {"APBookeeper_step_status": "text"}):
        await store(JOB, odd)
        assert await service.download_invoice_step("ada", "j1") == {}


@pytest.mark.parametrize(
    "count", ["3", True, None, [1], {"a": 1}, float("nan"), float("inf"), {"$op": "server_timestamp"}]
)
async def test_a_step_that_is_no_count_writes_nothing(service: FirebaseManagement, stored: Stored, count: Any) -> None:
    with pytest.raises(InvalidArgs):
        await service.upload_invoice_step("ada", "j1", {"extract": 1, "validate": count})
    assert await stored(JOB) is None


async def test_steps_counted_at_once_are_all_counted(service: FirebaseManagement) -> None:
    one = {"extract": {"$op": "increment", "by": 1}}
    await asyncio.gather(*(service.upload_invoice_step("ada", "j1", one) for _ in range(8)))
    assert await service.download_invoice_step("ada", "j1") == {"extract": 8}


async def test_metadata(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    await store(JOB, {"status": "running", "Document_information": {"pages": 2, "size": {"kb": 1}}})

    metadata = {"file_name": "bill.pdf", "size": {"w": 3}}
    assert await service.upload_metadatas_to_job_id("ada", "j1", metadata) is True

    assert await stored(JOB) == {
        "status": "running",
        "Document_information": {"pages": 2, "size": {"kb": 1, "w": 3}, "file_name": "bill.pdf"},
    }


async def test_restart_takes_what_was_found_and_leaves_what_was_said(
    service: FirebaseManagement, store: Store, stored: Stored, paths: Paths
) -> None:
    kept = {"status": "error", "file_id": "f1"}
    found = {"APBookeeper_step_status": {"extract": 3}, "current_step": "post", "Document_information": {"pages": 2}}
    await store(JOB, {**kept, **found, "document": {"pages": 2, "initial_data": {"currency": "EUR"}}})
    await store(OLDER, {"currency": "EUR"})
    for name in ("audit_report", "messages", "chat_history", "chat_messages"):
        await store(f"{JOB}/internal_message/{name}", {"x": 1})
    await store("clients/ada/notifications/j1", {"status": "error"})

    for _ in range(2):  # safe to repeat
        assert await service.restart_job("ada", "j1") is True
        assert await stored(JOB) == {**kept, "document": {"pages": 2}}
        assert await paths(JOB) == [
            JOB,
            f"{JOB}/internal_message/chat_history",
            f"{JOB}/internal_message/chat_messages",
            f"{JOB}/internal_message/messages",
        ]
    assert await stored("clients/ada/notifications/j1") == {"status": "error"}
    assert await service.download_document_to_task_job_id("ada", "j1") is None
    assert await service.download_invoice_step("ada", "j1") == {}


async def test_restart_of_no_job_deletes_nothing(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    await store(OLDER, {"currency": "EUR"})

    assert await service.restart_job("ada", "j1") is False

    assert await stored(OLDER) == {"currency": "EUR"}
    assert await stored(JOB) is None


async def test_batch_details(service: FirebaseManagement, store: Store) -> None:
    assert await service.get_batch_details("ada", "j1") is None

    await store("clients/ada/notifications/j1", {"status": "running"})
    nothing = {"job_id": "j1", "bank_account": "", "transactions": [], "start_instructions": ""}
    assert await service.get_batch_details("ada", "j1") == {**nothing, "status": "running"}

    first, second = {"transaction_id": 1, "amount": 10}, {"transaction_id": 2, "date": datetime(2025, 1, 1, tzinfo=UTC)}
    job = {
        "status": "older",
        "journal_name": "Bank",
        "start_instructions": "all of them",
        "jobs_data": [{"transactions": [first]}, "odd", {"bank_account": "CH93", "transactions": [second]}],
    }
    await store(JOB, job)
    assert await service.get_batch_details("ada", "j1") == {
        "job_id": "j1",
        "status": "running",
        "bank_account": "CH93",
        "transactions": [first, {"transaction_id": 2, "date": "2025-01-01T00:00:00Z"}],
        "start_instructions": "all of them",
    }


@pytest.mark.parametrize(
    ("job", "bank_account", "transactions"),
    [
        ({"jobs_data": [{}], "journal_name": "Bank"}, "Bank", []),
        (
            {"jobs_data": {"odd": 1}, "bank_account": "CH1", "journal_name": "Bank", "transactions": [{"a": 1}]},
            "CH1",
            [{"a": 1}],
        ),
        ({"jobs_data": [{"transactions": "odd"}], "start_instructions": None}, "", []),
    ],
)
async def test_batch_details_of_odd_documents(
    service: FirebaseManagement, store: Store, job: dict[str, Any], bank_account: str, transactions: list[Any]
) -> None:
    await store(JOB, job)
    assert await service.get_batch_details("ada", "j1") == {
        "job_id": "j1",
        "status": "",
        "bank_account": bank_account,
        "transactions": transactions,
        "start_instructions": "",
    }


async def test_delete_items(service: FirebaseManagement, store: Store, paths: Paths) -> None:
    for job in ("j1", "j2", "j3"):
        await store(f"clients/ada/notifications/{job}", {"read": False})
        await store(f"clients/ada/task_manager/{job}", {"status": "completed"})
        await store(f"clients/ada/task_manager/{job}/internal_message/messages", {"x": 1})
    await store("clients/ada/notifications/other-name", {"job_id": "j1"})
    await store("clients/ada/task_manager/j2/document/initial_data/deeper/x", {"x": 1})
    await store("clients/charles/task_manager/j1", {"status": "another user's"})

    deleted = await service.delete_items_by_job_id("ada", ["j1", "j2", "j1", "nothing"])

    assert deleted == {"notifications": 3, "documents": 5}
    assert await paths("clients/ada") == [
        "clients/ada/notifications/j3",
        "clients/ada/task_manager/j3",
        "clients/ada/task_manager/j3/internal_message/messages",
    ]
    assert await paths("clients/charles") == ["clients/charles/task_manager/j1"]
    assert await service.delete_items_by_job_id("ada", "j3") == {"notifications": 1, "documents": 2}
    assert await service.delete_items_by_job_id("ada", "j3") == {"notifications": 0, "documents": 0}


async def test_delete_items_goes_in_batches(service: FirebaseManagement, client: Any, paths: Paths) -> None:
    batch = client.batch()
    for number in range(DELETE_BATCH + 1):
        batch.set(client.document(f"{JOB}/parts/{number}"), {"n": number})
    await batch.commit()

    deleted = await service.delete_items_by_job_id("ada", ["j1"])

    assert deleted == {"notifications": 0, "documents": DELETE_BATCH + 1}  # of a job without a document of its own
    assert await paths(JOB) == []


async def test_bad_ids(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    await store(JOB, {"status": "running"})
    for call in (
        service.upload_document_to_task_job_id("a/b", "j1", {"a": 1}),
        service.upload_document_to_task_job_id("ada", "a/b", {"a": 1}),
        service.upload_document_to_task_job_id("ada", "j1", {"$op": "delete"}),
        service.download_document_to_task_job_id("", "j1"),
        service.upload_invoice_step("ada", "", {"a": 1}),
        service.download_invoice_step("ada", ".."),
        service.upload_metadatas_to_job_id("ada", "__j__", {"a": 1}),
        service.restart_job("ada", "a/b"),
        service.get_batch_details("ada", "a/b"),
        service.delete_items_by_job_id("ada", ["j1", "a/b"]),
        service.delete_items_by_job_id("a b", "j1"),
    ):
        with pytest.raises(InvalidArgs):
            await call
    assert await stored(JOB) == {"status": "running"}

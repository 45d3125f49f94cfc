"""The item that notifications and direct messages have in common, the newest of many, and as many as fit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from callboard import User
from callboard.messages import encode
from callboard_firebase.items import MAX_TEXT_BYTES, NewestSources, fitting, job_item, short_text

WRITTEN = datetime(2025, 9, 20, 11, 44, 0, 123_999, tzinfo=UTC)


def test_a_whole_item() -> None:
    given = {
        "job_id": "job1", "file_id": "file1", "file_name": "bill.pdf", "collection_id": "acme",
        "collection_name": "ACME", "function_name": "Router", "status": "completed",
        "timestamp": "2025-09-20T13:44:00+02:00", "additional_info": {"message": "look"}, "read": True,
    }  # fmt: skip

    assert job_item("m1", given, WRITTEN) == {
        "doc_id": "m1", "job_id": "job1", "file_id": "file1", "file_name": "bill.pdf", "collection_id": "acme",
        "collection_name": "ACME", "function_name": "Router", "status": "completed", "message": "bill.pdf - completed",
        "url": "/edit_form/job1", "timestamp": "2025-09-20T11:44:00.000Z", "additional_info": '{"message":"look"}',
    }  # fmt: skip


@pytest.mark.parametrize("odd", [None, [], {"a": 1}, True, b"\xff"])
def test_odd_fields_take_their_defaults(odd: Any) -> None:
    item = job_item("m1", dict.fromkeys(("job_id", "file_name", "status", "timestamp", "collection_id"), odd), WRITTEN)

    assert (item["job_id"], item["message"], item["collection_id"]) == ("m1", "Document - info", "")
    assert item["timestamp"] == "2025-09-20T11:44:00.123Z"


def test_no_item_is_too_large_for_an_event() -> None:
    fields = ("job_id", "file_id", "file_name", "collection_id", "collection_name", "function_name", "status")
    item = job_item("m1", {**dict.fromkeys(fields, "\x00" * 500_000), "additional_info": "x" * 500_000}, WRITTEN)

    assert len(encode(item)) <= 100 * 1024
    assert len(encode(short_text("é" * 100_000))) <= MAX_TEXT_BYTES + 2


def test_the_newest_of_those_a_user_may_see() -> None:
    newest = NewestSources(2, User(uid="ada", authorized_companies_ids=frozenset({"acme"})))
    for minute, company in enumerate(["acme", "other", "acme", "acme", "other"]):
        seen = newest.add(f"m{minute}", {"collection_id": company}, WRITTEN.replace(minute=minute))
        assert seen == (company == "acme")

    assert [source.doc_id for source in newest.sources()] == ["m3", "m2"]
    assert newest.total == 3


def test_as_many_as_fit_and_no_more_are_made() -> None:
    made: list[int] = []

    def items() -> Any:
        for n in range(100):
            made.append(n)
            yield "x" * 97  # 99 bytes with its quotes, 100 with the comma

    assert len(fitting(items(), 1_000)) == 10
    assert len(made) == 11

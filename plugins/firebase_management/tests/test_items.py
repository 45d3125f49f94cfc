"""The notification item, and the newest of many."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.api_core.datetime_helpers import DatetimeWithNanoseconds
from google.cloud.firestore import GeoPoint

from callboard import User
from callboard.messages import encode
from callboard_firebase_management import notification_item
from callboard_firebase_management.items import MAX_TEXT_BYTES, Newest, moment, wire_time

WRITTEN = datetime(2025, 9, 20, 11, 44, 0, 123_999, tzinfo=UTC)


def test_a_whole_item() -> None:
    exact: Any = DatetimeWithNanoseconds  # what Google's client returns; it has no types
    data = {
        "job_id": "job1",
        "file_id": "file1",
        "file_name": "bill.pdf",
        "collection_id": "acme",
        "collection_name": "ACME",
        "function_name": "Router",
        "status": "completed",
        "read": True,
        "timestamp": exact(2025, 9, 20, 11, 44, nanosecond=123_456_789, tzinfo=UTC),
        "additional_info": '{"error_message": "no VAT number", "message": "look"}',
        "batch_id": "not part of an item",
    }

    assert notification_item("doc1", data, WRITTEN) == {
        "doc_id": "doc1",
        "job_id": "job1",
        "file_id": "file1",
        "file_name": "bill.pdf",
        "collection_id": "acme",
        "collection_name": "ACME",
        "function_name": "Router",
        "status": "completed",
        "message": "bill.pdf - completed",
        "url": "/edit_form/job1",
        "read": True,
        "timestamp": "2025-09-20T11:44:00.123Z",
        "additional_info": '{"error_message": "no VAT number", "message": "look"}',
        "info_message": "no VAT number",
    }


def test_an_empty_document() -> None:
    assert notification_item("doc1", {}, WRITTEN) == {
        "doc_id": "doc1",
        "job_id": "doc1",
        "file_id": "",
        "file_name": "Document",
        "collection_id": "",
        "collection_name": "",
        "function_name": "",
        "status": "info",
        "message": "Document - info",
        "url": "/edit_form/doc1",
        "read": False,
        "timestamp": "2025-09-20T11:44:00.123Z",
        "additional_info": "",
        "info_message": "",
    }


@pytest.mark.parametrize("odd", [None, True, 1, 2.5, [], ["a"], {}, {"a": 1}, b"\xff", GeoPoint(1, 2), WRITTEN, ""])
def test_odd_values_anywhere_leave_every_field_of_its_type(odd: Any) -> None:
    fields = ("job_id", "file_id", "file_name", "collection_id", "collection_name", "function_name", "status", "read",
              "timestamp", "additional_info")  # fmt: skip
    item = notification_item("doc1", dict.fromkeys(fields, odd), WRITTEN)

    assert {name: type(value) for name, value in item.items()} == {
        name: bool if name == "read" else str for name in item
    }
    assert datetime.fromisoformat(item["timestamp"]).tzinfo is not None
    assert json.loads(json.dumps(item)) == item


@pytest.mark.parametrize(
    ("additional_info", "text", "message"),
    [
        (None, "", ""),
        ("see the file", "see the file", ""),
        ('{"message": "look"}', '{"message": "look"}', "look"),
        ('{"error_message": "", "message": "look"}', '{"error_message": "", "message": "look"}', "look"),
        ({"error_message": "bad", "message": "look"}, '{"error_message":"bad","message":"look"}', "bad"),
        ({"message": 404}, '{"message":404}', "404"),
        ({"message": {"deep": 1}}, '{"message":{"deep":1}}', ""),
        ({"at": WRITTEN, "x": float("nan")}, '{"at":"2025-09-20T11:44:00.123999Z","x":"NaN"}', ""),
        (["message"], '["message"]', ""),
        ('["message"]', '["message"]', ""),
        ('{"message": ', '{"message": ', ""),
        ("[" * 8_000, "[" * 8_000, ""),
        ("[" * 100_000, "[" * (MAX_TEXT_BYTES - 3) + "…", ""),
        (12, "12", ""),
    ],
)
def test_additional_info(additional_info: Any, text: str, message: str) -> None:
    item = notification_item("doc1", {"additional_info": additional_info}, WRITTEN)

    assert (item["additional_info"], item["info_message"]) == (text, message)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05.000Z"),
        ("2025-01-02T03:04:05.678901+02:00", "2025-01-02T01:04:05.678Z"),
        ("2025-01-02 03:04:05", "2025-01-02T03:04:05.000Z"),
        (datetime(2025, 1, 2, 3, 4, 5), "2025-01-02T03:04:05.000Z"),
        (datetime(2025, 1, 2, tzinfo=timezone(timedelta(hours=1))), "2025-01-01T23:00:00.000Z"),
        ("yesterday", wire_time(WRITTEN)),
        ("0001-01-01T00:00:00+14:00", wire_time(WRITTEN)),
        (1_735_787_045, wire_time(WRITTEN)),
        (None, wire_time(WRITTEN)),
    ],
)
def test_timestamps(timestamp: Any, expected: str) -> None:
    assert notification_item("doc1", {"timestamp": timestamp}, WRITTEN)["timestamp"] == expected
    assert moment({"timestamp": timestamp}, WRITTEN).tzinfo is not None


def test_newest_first_and_no_more_than_the_limit() -> None:
    times = {f"doc{n:03}": WRITTEN + timedelta(minutes=n // 2) for n in range(100)}
    shuffled = random.Random(7).sample(sorted(times), len(times))
    newest = Newest(5)
    for doc_id in shuffled:
        newest.add(doc_id, {}, times[doc_id])

    assert [item["doc_id"] for item in newest.items()] == ["doc099", "doc098", "doc097", "doc096", "doc095"]
    assert newest.total == 100


def test_newest_leaves_out_what_the_user_may_not_see() -> None:
    newest = Newest(5, User(uid="ada", authorized_companies_ids=frozenset({"acme"})))

    assert newest.add("1", {"collection_id": "acme"}, WRITTEN)
    assert not newest.add("2", {"collection_id": "other"}, WRITTEN)
    assert not newest.add("3", {}, WRITTEN)

    assert [item["doc_id"] for item in newest.items()] == ["1"]
    assert newest.total == 1


@pytest.mark.parametrize("character", ["a", "é", "\0", "😀"])
def test_an_item_has_a_largest_size_whatever_the_document_holds(character: str) -> None:
    fields = ("job_id", "file_id", "file_name", "collection_id", "collection_name", "function_name", "status")
    huge = character * 300_000
    item = notification_item("doc1", {**dict.fromkeys(fields, huge), "additional_info": {"message": huge}}, WRITTEN)

    assert len(encode(item)) < 100 * 1024
    for field in (*fields, "additional_info", "info_message"):
        text = dict(item)[field]
        assert isinstance(text, str)
        assert text.endswith("…")
        assert 8_000 < len(encode(text)) <= MAX_TEXT_BYTES + 2
    assert item["file_name"].startswith(character)


def test_a_text_of_the_largest_size_is_whole() -> None:
    text = "a" * MAX_TEXT_BYTES
    assert notification_item("doc1", {"additional_info": text}, WRITTEN)["additional_info"] == text

"""Direct messages as items."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from callboard.messages import encode
from callboard_firebase.items import JobItem
from callboard_firebase.realtime import PushIds
from callboard_firebase_realtime.direct_items import MAX_MORE_BYTES, direct_item, is_unread

WHEN = datetime(2025, 9, 20, 11, 44, tzinfo=UTC)


def test_a_whole_item() -> None:
    stored = {
        "job_id": "job1", "file_id": "file1", "file_name": "bill.pdf", "collection_id": "acme",
        "collection_name": "ACME", "function_name": "Router", "status": "completed", "read": False,
        "timestamp": "2025-09-20T13:44:00+02:00", "additional_info": '{"message": "look"}', "info_message": "forged",
    }  # fmt: skip

    item = direct_item("m1", stored)

    assert item == {
        "doc_id": "m1", "job_id": "job1", "file_id": "file1", "file_name": "bill.pdf", "collection_id": "acme",
        "collection_name": "ACME", "function_name": "Router", "status": "completed", "message": "bill.pdf - completed",
        "url": "/edit_form/job1", "timestamp": "2025-09-20T11:44:00.000Z", "additional_info": '{"message": "look"}',
    }  # fmt: skip
    assert item.keys() == JobItem.__annotations__.keys()


def test_what_else_a_message_holds_is_kept_and_cannot_replace_the_items_fields() -> None:
    item = direct_item("m1", {"doc_id": "forged", "url": "//evil", "sender_id": "ada", "tags": {"a": 1}})

    assert (item["doc_id"], item["url"]) == ("m1", "/edit_form/m1")
    assert (item["sender_id"], item["tags"]) == ("ada", {"a": 1})


def test_a_text_without_a_document_is_the_message() -> None:
    assert direct_item("m1", {"message": "See you at noon."})["message"] == "See you at noon."
    assert direct_item("m1", {"message": "hello", "file_name": "a.pdf"})["message"] == "a.pdf - info"
    assert direct_item("m1", {"message": {"odd": 1}})["message"] == "Document - info"


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (1758368640123, "2025-09-20T11:44:00.123Z"),
        (1758368640123.9, "2025-09-20T11:44:00.123Z"),
        ("2025-09-20T11:44:00.123456+00:00", "2025-09-20T11:44:00.123Z"),
        ("2025-09-20", "2025-09-20T00:00:00.000Z"),
    ],
)
def test_times_of_either_kind(stored: Any, shown: str) -> None:
    assert direct_item("m1", {"timestamp": stored, "status": "x"})["timestamp"] == shown


@pytest.mark.parametrize("odd", [None, "yesterday", True, [], {"a": 1}, 1e300, -1e300])
def test_without_a_time_that_can_be_read_the_keys_counts(odd: Any) -> None:
    key = PushIds(WHEN.timestamp).next()

    assert direct_item(key, {"timestamp": odd})["timestamp"] == "2025-09-20T11:44:00.000Z"
    assert direct_item("m1", {"timestamp": odd})["timestamp"] == "1970-01-01T00:00:00.000Z"


def test_no_item_is_too_large_for_an_event() -> None:
    text = "\x00" * 400_000
    item = direct_item("m1", dict.fromkeys([*JobItem.__annotations__, "message", "more"], text))

    assert len(encode(item)) < 120 * 1024
    assert "more" not in item
    assert "more" in direct_item("m1", {"more": "x" * (MAX_MORE_BYTES - 20)})


def test_unread() -> None:
    for unread in ({"status": "x"}, {"status": "x", "read": False}, {"status": "x", "read": "yes"}):
        assert is_unread(unread)
    for not_one in ({"status": "x", "read": True}, {"read": False}, {}, None, "text", ["list"]):
        assert not is_unread(not_one)

"""What is stored of a chat message, and how stored ones are shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from callboard import InvalidArgs
from callboard.messages import encode
from callboard_firebase_realtime.chat_messages import (
    MAX_SENT_BYTES,
    MAX_SHOWN_BYTES,
    is_message,
    new_message,
    parcels,
    shown,
    stored_messages,
)


def test_a_new_message() -> None:
    message = new_message("ada", "MESSAGE", "hello", None)

    stamp = message.pop("timestamp")
    assert message == {"content": "hello", "sender_id": "ada", "message_type": "MESSAGE", "read": False}
    assert datetime.fromisoformat(stamp).tzinfo is not None
    assert len(stamp) == len("2025-09-20T11:44:00.000Z")


def test_more_lies_beside_the_fields_and_replaces_none_of_them() -> None:
    more = {
        "content": "other",
        "sender_id": "forged",
        "timestamp": "1970",
        "message_type": "CMMD",
        "read": True,
        "x": 1,
    }
    message = new_message("ada", "CARD", "text", more)

    assert (message["content"], message["sender_id"], message["message_type"]) == ("text", "ada", "CARD")
    assert (message["read"], message["x"]) == (False, 1)
    assert message["timestamp"] != "1970"
    assert new_message("ada", "CARD", None, more)["content"] == "other"
    assert new_message("ada", "CARD", None, {"content": {"card": 1}})["content"] == {"card": 1}
    assert new_message("ada", "CARD", None, None)["content"] == ""
    assert new_message("ada", "CARD", "", {"content": "other"})["content"] == ""


def test_a_message_has_its_size() -> None:
    new_message("ada", "MESSAGE", "x" * (MAX_SENT_BYTES - 300), None)
    with pytest.raises(InvalidArgs, match="64 KiB"):
        new_message("ada", "MESSAGE", "x" * MAX_SENT_BYTES, None)
    with pytest.raises(InvalidArgs, match="64 KiB"):
        new_message("ada", "MESSAGE", "", {"more": ["x" * 1000] * 100})


def test_stored_messages_are_in_the_order_of_their_keys_and_have_ids() -> None:
    node = {"b": {"content": "2"}, "10": {"content": "1"}, "9": {"content": "0", "id": "forged"}, "c": {"read": True}}

    assert stored_messages(node) == [
        {"content": "0", "id": "9"},
        {"content": "1", "id": "10"},
        {"content": "2", "id": "b"},
    ]
    assert stored_messages([None, {"content": "x"}, "text"]) == [
        {"content": "x", "id": "1"},
        {"content": "text", "id": "2"},
    ]
    assert stored_messages(None) == stored_messages("odd") == []


def test_what_is_a_message() -> None:
    for one in ({"content": "x"}, {"read": True, "content": ""}, "text", 0, False, ["a"]):
        assert is_message(one)
    for none in (None, {}, {"read": True}, {"read": "x"}):
        assert not is_message(none)


@pytest.mark.parametrize(
    "content", ["x" * 400_000, "\x00" * 100_000, {"deep": ["é" * 200_000]}, ["x" * 100] * 5_000, None]
)
def test_a_huge_message_is_shown_cut(content: Any) -> None:
    stored = {
        "content": content, "sender_id": "ada", "timestamp": 1758368640123, "message_type": "CARD", "read": True,
        "more": "y" * 200_000,
    }  # fmt: skip

    message = shown("m1", stored)

    assert len(encode(message)) <= MAX_SHOWN_BYTES
    assert (message["id"], message["truncated"], message["read"]) == ("m1", True, True)
    assert (message["sender_id"], message["timestamp"]) == ("ada", 1758368640123)
    assert isinstance(message["content"], str)
    assert "more" not in message


def test_every_other_message_is_shown_as_it_is() -> None:
    stored = {"content": {"a": [1]}, "more": "y" * 90_000}
    assert shown("m1", stored) == {**stored, "id": "m1"}


def test_parcels_keep_the_order_and_below_the_size() -> None:
    messages = [{"id": str(n), "content": "x" * (n % 7) * 10} for n in range(100)]
    found = parcels(messages, 300)

    assert [message for parcel in found for message in parcel] == messages
    assert all(len(encode(parcel)) <= 302 for parcel in found)
    assert len(found) < 30
    assert parcels([], 300) == []
    assert parcels([{"content": "x" * 1_000}], 300) == [[{"content": "x" * 1_000}]]

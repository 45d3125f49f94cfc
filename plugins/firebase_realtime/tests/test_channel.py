"""Chat messages: read, sent, marked as read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from callboard import InvalidArgs
from callboard_firebase_realtime import FirebaseRealtime

from .conftest import Tree

pytestmark = pytest.mark.anyio

MESSAGES = "acme/job_chats/t1/messages"


async def test_a_message_is_sent(service: FirebaseRealtime, tree: Tree) -> None:
    sent = await service.send_realtime_message_structured("ada", "acme", "t1", "Where is invoice 42?")

    stored = await tree.get(MESSAGES)
    message = stored.pop(sent)
    assert stored == {}
    assert message.pop("timestamp").endswith("Z")
    assert message == {
        "content": "Where is invoice 42?",
        "sender_id": "ada",
        "message_type": "MESSAGE_PINNOKIO",
        "read": False,
    }


async def test_a_structured_message(service: FirebaseRealtime, tree: Tree) -> None:
    card = {"cardsV2": [{"cardId": "c1", "sections": [{"text": "é"}]}], "at": {"$op": "server_timestamp"}}
    sent = await service.send_realtime_message_structured(
        "ada", "acme", "t1", message_type="CARD", message_data=card, mode="chats"
    )

    stored = await tree.get(f"acme/chats/t1/messages/{sent}")
    assert (stored["message_type"], stored["content"], stored["cardsV2"]) == ("CARD", "", card["cardsV2"])
    assert isinstance(stored["at"], int)


async def test_messages_of_a_type_of_their_own(service: FirebaseRealtime, tree: Tree) -> None:
    dialled = await service.send_speeddial_action("ada", "acme", "t1", "open_ledger", {"year": 2025})
    listed = await service.send_tools_list("ada", "acme", "t1", [{"name": "search"}, "book"])
    empty = await service.send_tools_list("ada", "acme", "t1", [])

    stored = await tree.get(MESSAGES)
    assert (stored[dialled]["message_type"], stored[dialled]["content"]) == ("SPEEDDIAL", "open_ledger")
    assert stored[dialled]["year"] == 2025
    assert stored[listed]["message_type"] == "TOOL"
    assert json.loads(stored[listed]["content"]) == [{"name": "search"}, "book"]
    assert stored[empty]["content"] == "[]"


async def test_the_newest_messages_oldest_first(service: FirebaseRealtime) -> None:
    sent = [await service.send_realtime_message_structured("ada", "acme", "t1", str(n)) for n in range(60)]

    newest = await service.get_channel_messages("acme", "t1")
    assert [message["id"] for message in newest] == sent[-50:]
    assert [message["content"] for message in newest] == [str(n) for n in range(10, 60)]
    assert [message["id"] for message in await service.get_channel_messages("acme", "t1", 3)] == sent[-3:]
    assert len(await service.get_channel_messages("acme", "t1", 1_000)) == 60
    assert await service.get_channel_messages("acme", "t1", mode="chats") == []
    assert await service.get_channel_messages("acme", "nothing") == []


async def test_messages_of_other_writers_are_shown_as_stored(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(MESSAGES, {"0": {"content": "a", "timestamp": 1758368640123}, "1": "text", "2": {"read": True}})

    assert await service.get_channel_messages("acme", "t1") == [
        {"content": "a", "timestamp": 1758368640123, "id": "0"},
        {"content": "text", "id": "1"},
    ]


async def test_messages_are_marked_as_read(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(MESSAGES, {f"m{n}": {"content": str(n), "read": False} for n in range(4)})

    marked = await service.mark_chat_read("acme", "t1", ["m1", "m3", "m1"], "job_chats")

    assert marked == 2
    stored = await tree.get(MESSAGES)
    assert [stored[f"m{n}"] for n in range(4)] == [{"content": str(n), "read": n in (1, 3)} for n in range(4)]


async def test_marking_makes_no_messages(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(MESSAGES, {"m0": {"content": "x"}, "text": "x", "stub": {"read": True}})
    before = await tree.text()

    assert await service.mark_chat_read("acme", "t1", ["gone", "stub", "text"], "job_chats") == 0
    assert await service.mark_chat_read("acme", "t1", [], "job_chats") == 0
    assert await service.mark_chat_read("acme", "t1", ["m0"], "chats") == 0
    assert await tree.text() == before

    assert await service.mark_chat_read("acme", "t1", ["gone", "m0"], "job_chats") == 1
    assert await tree.get(MESSAGES) == {"m0": {"content": "x", "read": True}, "text": "x", "stub": {"read": True}}


async def test_many_are_marked_at_once(service: FirebaseRealtime, tree: Tree) -> None:
    ids = [f"m{n}" for n in range(500)]
    await tree.put(MESSAGES, {one: {"content": "x"} for one in ids})

    assert await service.mark_chat_read("acme", "t1", ids, "job_chats") == 500
    assert all(message["read"] for message in (await tree.get(MESSAGES)).values())


@pytest.mark.parametrize("odd", ["", "a/b", "a.b", "a$b", "[a]", "a#", "\x00", "x" * 769, "\ud800"])
async def test_message_ids_that_are_none(service: FirebaseRealtime, tree: Tree, odd: str) -> None:
    await tree.put(f"{MESSAGES}/m0", {"content": "x"})
    before = await tree.text()
    with pytest.raises(InvalidArgs):
        await service.mark_chat_read("acme", "t1", ["m0", odd], "job_chats")
    assert await tree.text() == before


@pytest.mark.parametrize(
    "data", [{"a.b": 1}, {"deep": [{"a/b": 1}]}, {"": 1}, {"n": 2**60}, {"x": "y" * 70_000}, {"x": {"$op": "what"}}]
)
async def test_data_that_the_database_does_not_take(service: FirebaseRealtime, tree: Tree, data: Any) -> None:
    with pytest.raises(InvalidArgs):
        await service.send_realtime_message_structured("ada", "acme", "t1", "x", message_data=data)
    assert await tree.get() is None


async def test_messages_sent_together_are_all_there(service: FirebaseRealtime) -> None:
    sent = await asyncio.gather(
        *(service.send_realtime_message_structured("ada", "acme", "t1", str(n)) for n in range(100))
    )

    found = await service.get_channel_messages("acme", "t1", 1_000)
    assert sorted(message["id"] for message in found) == sorted(sent)
    assert len(set(sent)) == 100

"""Messages about a job, and its chat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest
from google.cloud.firestore import AsyncClient

from callboard import FailedPrecondition, InvalidArgs
from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management.internal_messages import MAX_MESSAGE_BYTES

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
JOB = "clients/ada/task_manager/j1"
MESSAGES = f"{JOB}/internal_message/messages"
CHAT = f"{JOB}/internal_message/chat_history"


async def test_messages_come_in_their_order(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.get_internal_message("ada", "j1") == []

    first = await service.add_message_to_internal_message("ada", "j1", "please check", "Auditor", "APbookeeper")
    second = await service.add_message_to_internal_message("ada", "j1", {"text": "done"}, ["a", "b"], "Auditor")

    told = await service.get_internal_message("ada", "j1")
    times = [datetime.fromisoformat(one.pop("timestamp")) for one in told]  # type: ignore[misc]
    assert told == [
        {"id": first, "message": "please check", "sent_to": "Auditor", "sent_from": "APbookeeper"},
        {"id": second, "message": {"text": "done"}, "sent_to": ["a", "b"], "sent_from": "Auditor"},
    ]
    assert times == sorted(times)
    assert await stored(JOB) is None
    assert await service.get_internal_message("charles", "j1") == []


async def test_messages_added_at_once_are_all_kept(service: FirebaseManagement) -> None:
    ids = await asyncio.gather(
        *(service.add_message_to_internal_message("ada", "j1", f"m{n}", "to", "from") for n in range(20))
    )

    told = await service.get_internal_message("ada", "j1")

    assert sorted(one["id"] for one in told) == sorted(ids)
    assert {one["message"] for one in told} == {f"m{n}" for n in range(20)}


async def test_writers_that_read_first_would_lose_a_message(client: AsyncClient, stored: Stored) -> None:
    """The negative control: what the one write of one field protects from."""
    everyone_has_read = asyncio.Barrier(2)

    async def add(message: str) -> None:
        messages = (await client.document(MESSAGES).get()).to_dict() or {}
        await everyone_has_read.wait()
        await client.document(MESSAGES).set({**messages, str(len(messages) + 1): {"message": message}})

    await asyncio.gather(add("one"), add("two"))

    assert len(await stored(MESSAGES) or {}) == 1


async def test_messages_of_earlier_writers_come_among_the_others(service: FirebaseManagement, store: Store) -> None:
    numbered = {
        str(n): {"message": f"old {n}", "datetime": "2025-01-01T00:00:00+01:00", "sent_to": "to", "send_from": "from"}
        for n in (1, 2, 10)
    }
    newer = {"message": "newer", "datetime": datetime(2025, 1, 2, tzinfo=UTC)}
    await store(MESSAGES, {**numbered, "3": newer, "odd": "not a message"})
    added = await service.add_message_to_internal_message("ada", "j1", "newest", "to", "from")

    told = await service.get_internal_message("ada", "j1")

    assert [one["id"] for one in told] == ["1", "2", "10", "3", added]
    assert told[0] == {
        "id": "1", "message": "old 1", "sent_to": "to", "sent_from": "from", "timestamp": "2024-12-31T23:00:00.000Z",
    }  # fmt: skip
    assert (told[3]["message"], told[3]["sent_to"], told[3]["timestamp"]) == ("newer", None, "2025-01-02T00:00:00.000Z")


async def test_a_message_that_finds_no_room_is_refused_and_the_others_stay(
    service: FirebaseManagement, store: Store
) -> None:
    await store(MESSAGES, {"1": {"message": "x" * 1_000_000}})

    with pytest.raises(FailedPrecondition, match="1 MiB"):
        await service.add_message_to_internal_message("ada", "j1", "y" * 60_000, "to", "from")

    assert [one["id"] for one in await service.get_internal_message("ada", "j1")] == ["1"]


@pytest.mark.parametrize(
    "message", ["x" * (MAX_MESSAGE_BYTES - 1), {"text": "x" * MAX_MESSAGE_BYTES}, {"$op": "delete"}, "\ud800"]
)
async def test_a_message_that_is_none(service: FirebaseManagement, stored: Stored, message: Any) -> None:
    with pytest.raises(InvalidArgs):
        await service.add_message_to_internal_message("ada", "j1", message, "to", "from")
    assert await stored(MESSAGES) is None


async def test_chat_history_gets_what_is_missing(service: FirebaseManagement, stored: Stored) -> None:
    question, answer = {"role": "user", "content": "why?", "parts": [1]}, {"role": "assistant", "content": "so."}

    assert await service.upload_chat_history("ada", "j1", []) is True
    assert await stored(CHAT) is None
    assert await service.upload_chat_history("ada", "j1", [question]) is True
    assert await service.upload_chat_history("ada", "j1", [question, answer, "text"]) is True
    assert await service.upload_chat_history("ada", "j1", [answer]) is True

    assert await stored(CHAT) == {"messages": [question, answer, "text"]}


async def test_chats_uploaded_at_once_are_all_kept(service: FirebaseManagement, stored: Stored) -> None:
    await asyncio.gather(*(service.upload_chat_history("ada", "j1", [{"n": n}]) for n in range(10)))

    history = await stored(CHAT)
    assert history is not None
    assert sorted(one["n"] for one in history["messages"]) == list(range(10))


async def test_a_chat_that_finds_no_room(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    await store(CHAT, {"messages": ["x" * 1_000_000]})

    with pytest.raises(FailedPrecondition, match="1 MiB"):
        await service.upload_chat_history("ada", "j1", ["y" * 60_000])

    assert len((await stored(CHAT) or {})["messages"]) == 1


async def test_bad_ids_and_entries(service: FirebaseManagement) -> None:
    for call in (
        service.add_message_to_internal_message("a/b", "j1", "m", "to", "from"),
        service.add_message_to_internal_message("ada", "a/b", "m", "to", "from"),
        service.get_internal_message("ada", ""),
        service.upload_chat_history("ada", "..", ["m"]),
        service.upload_chat_history("ada", "j1", [{"$op": "delete"}]),
        service.upload_chat_history("ada", "j1", [{"at": {"$op": "server_timestamp"}}]),
    ):
        with pytest.raises(InvalidArgs):
            await call

"""Direct messages: sent, read, deleted."""

from __future__ import annotations

from typing import Any

import pytest

from callboard import InvalidArgs
from callboard_firebase_realtime import FirebaseRealtime, inbox

from .conftest import Tree

pytestmark = pytest.mark.anyio

INBOX = "clients/charles/direct_message_notif"


async def test_a_direct_message_is_sent(service: FirebaseRealtime, tree: Tree) -> None:
    sent = await service.send_direct_message("ada", "charles", {"job_id": "j1", "status": "done", "sender_id": "eve"})

    stored = await tree.get(INBOX)
    assert stored[sent].pop("timestamp").endswith("Z")
    assert stored == {sent: {"job_id": "j1", "status": "done", "sender_id": "ada"}}

    timed = await service.send_direct_message("ada", "charles", {"x": 1, "timestamp": "2025-09-20T11:44:00.000Z"})
    assert (await tree.get(f"{INBOX}/{timed}"))["timestamp"] == "2025-09-20T11:44:00.000Z"
    assert timed > sent


async def test_unread_ones_newest_first(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(
        INBOX,
        {
            "m1": {"file_name": "a.pdf", "status": "done", "timestamp": "2025-09-20T11:00:00+00:00"},
            "m2": {"file_name": "b.pdf", "timestamp": 1758370000000},
            "m3": {"file_name": "c.pdf", "timestamp": "2025-09-20T10:00:00Z", "read": False},
            "m4": {"file_name": "d.pdf", "timestamp": "2025-09-20T12:30:00Z", "read": True},
            "m5": {"read": False},
            "m6": "odd",
        },
    )

    found = await service.get_unread_direct_messages("charles")

    assert [item["doc_id"] for item in found] == ["m2", "m1", "m3"]
    assert found[1]["message"] == "a.pdf - done"
    assert not {"read", "info_message"} & found[2].keys()
    assert await service.get_unread_direct_messages("ada") == []


async def test_companies(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(INBOX, {f"m{n}": {"collection_id": company} for n, company in enumerate(["acme", "other", "third"])})
    await tree.put(f"{INBOX}/m3", {"status": "nobody's"})

    for companies, expected in (
        (["acme", "third"], {"m0", "m2"}),
        ([], set()),
        (None, {"m0", "m1", "m2", "m3"}),
    ):
        found = await service.get_unread_direct_messages("charles", companies)
        assert {item["doc_id"] for item in found} == expected


async def test_only_the_newest_are_looked_at(
    service: FirebaseRealtime, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MAX_READ", 3)
    await tree.put(INBOX, {f"m{n}": {"status": "x", "read": n == 9} for n in range(10)})

    assert {item["doc_id"] for item in await service.get_unread_direct_messages("charles")} == {"m7", "m8"}


async def test_one_is_deleted(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(INBOX, {"m1": {"status": "x"}, "m2": {"status": "y"}})

    assert await service.delete_direct_message("charles", "m1") is True
    assert await service.delete_direct_message("charles", "m1") is True
    assert await service.delete_direct_message("ada", "m2") is True

    assert await tree.get(INBOX) == {"m2": {"status": "y"}}


@pytest.mark.parametrize("odd", ["", "m1/..", "a/b", "a.b", "#"])
async def test_ids_that_are_none(service: FirebaseRealtime, tree: Tree, odd: str) -> None:
    await tree.put(INBOX, {"m1": {"status": "x"}})
    before = await tree.text()

    for call in (
        service.delete_direct_message("charles", odd),
        service.delete_direct_message(odd, "m1"),
        service.send_direct_message("ada", odd, {"status": "x"}),
        service.get_unread_direct_messages(odd),
    ):
        with pytest.raises(InvalidArgs):
            await call
    with pytest.raises(InvalidArgs, match="user_id"):
        await service.send_direct_message("a b", "charles", {"status": "x"})
    with pytest.raises(InvalidArgs, match="recipient_id"):
        await service.send_direct_message("ada", odd, {"status": "x"})
    assert await tree.text() == before


@pytest.mark.parametrize("data", [{}, {"a/b": 1}, {"x": "y" * 70_000}])
async def test_data_that_is_no_message(service: FirebaseRealtime, tree: Tree, data: Any) -> None:
    with pytest.raises(InvalidArgs):
        await service.send_direct_message("ada", "charles", data)
    assert await tree.get() is None

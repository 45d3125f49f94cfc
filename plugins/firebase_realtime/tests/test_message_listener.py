"""`msg.sync` and `msg.new`: what they hold, what they leave out, and that watching writes nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest

from callboard import Event, Listener, User
from callboard.events.bus import MAX_EVENT_BYTES
from callboard.messages import encode
from callboard_firebase.realtime import PushIds
from callboard_firebase_realtime import FirebaseRealtime, window

from .conftest import Next, Tree, messages_of

pytestmark = pytest.mark.anyio

Follow: TypeAlias = Callable[[Listener[Any], User], Awaitable[Next]]
INBOX = "clients/ada/direct_message_notif"
ADA = User(uid="ada")
ADA_AT_ACME = User(uid="ada", authorized_companies_ids=frozenset({"acme"}))


def shown(sync: Event) -> list[str]:
    return [item["doc_id"] for item in sync.payload["messages"]]


async def test_snapshot(service: FirebaseRealtime, tree: Tree) -> None:
    times = {"m0": "2025-09-20T11:00:00Z", "m1": "2025-09-20T11:02:00Z", "m2": "2025-09-20T11:01:00Z"}
    await tree.put(INBOX, {key: {"file_name": f"{key}.pdf", "timestamp": when} for key, when in times.items()})
    await tree.put("clients/charles/direct_message_notif/other", {"status": "x"})
    before = datetime.now(UTC)

    [sync] = await messages_of(service).snapshot(ADA)

    assert (sync.type, sync.uid) == ("msg.sync", "ada")
    assert shown(sync) == ["m1", "m2", "m0"]
    assert sync.payload["count"] == 3
    assert sync.payload["messages"][0]["message"] == "m1.pdf - info"
    assert sync.payload["timestamp"] == sync.as_of
    assert sync.as_of is not None
    # What another replica's slower clock stamps after the read must not look older than it.
    assert (before - datetime.fromisoformat(sync.as_of)).total_seconds() > 4


async def test_sync_then_deltas(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    await tree.put(f"{INBOX}/m0", {"status": "old"})
    next_event = await follow(messages_of(service), ADA)

    sync = await next_event()
    assert (sync.type, shown(sync), sync.payload["count"]) == ("msg.sync", ["m0"], 1)

    sent = await service.send_direct_message("charles", "ada", {"file_name": "a.pdf", "status": "done"})
    new = await next_event()
    assert (new.type, new.uid, new.payload["doc_id"]) == ("msg.new", "ada", sent)
    assert (new.payload["message"], new.payload["sender_id"]) == ("a.pdf - done", "charles")

    await tree.patch(f"{INBOX}/{sent}", {"status": "changed"})
    changed = await next_event()
    assert (changed.type, changed.payload["doc_id"]) == ("msg.new", sent)
    assert changed.payload["message"] == "a.pdf - changed"

    await tree.patch(f"{INBOX}/m0", {"read": True})
    read = await next_event()
    assert (read.type, shown(read)) == ("msg.sync", [sent])

    await service.delete_direct_message("ada", sent)
    gone = await next_event()
    assert (gone.type, shown(gone), gone.payload["count"]) == ("msg.sync", [], 0)


async def test_companies_the_user_may_not_see(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    await tree.put(INBOX, {"m0": {"collection_id": "acme"}, "m1": {"collection_id": "other"}, "m2": {"status": "x"}})
    next_event = await follow(messages_of(service), ADA_AT_ACME)

    for sync in (await next_event(), *await messages_of(service).snapshot(ADA_AT_ACME)):
        assert (shown(sync), sync.payload["count"]) == (["m0"], 1)

    # What happens to the others stays unseen: the next event is the one about `m4`.
    await tree.patch(f"{INBOX}/m1", {"status": "changed"})
    await tree.put(f"{INBOX}/m3", {"collection_id": "other"})
    await tree.put(f"{INBOX}/m2", None)
    await tree.put(f"{INBOX}/m4", {"collection_id": "acme"})
    new = await next_event()
    assert (new.type, new.payload["doc_id"]) == ("msg.new", "m4")

    # One that changes hands comes or goes.
    await tree.patch(f"{INBOX}/m3", {"collection_id": "acme"})
    come = await next_event()
    assert (come.type, come.payload["doc_id"]) == ("msg.new", "m3")
    await tree.patch(f"{INBOX}/m0", {"collection_id": "other"})
    gone = await next_event()
    assert gone.type == "msg.sync"
    assert set(shown(gone)) == {"m3", "m4"}


async def test_a_burst_ends_in_the_right_state(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    next_event = await follow(messages_of(service), ADA)
    await next_event()
    keys = PushIds()
    at_once = {keys.next(): {"status": str(n)} for n in range(500)}

    await tree.patch(INBOX, at_once)

    sync = await next_event()
    assert sync.type == "msg.sync"
    assert sync.payload["count"] == 500
    newest = sorted(at_once, reverse=True)
    assert 300 < len(shown(sync)) <= 500
    assert shown(sync) == newest[: len(shown(sync))]
    assert len(encode(sync)) < MAX_EVENT_BYTES


async def test_messages_one_after_the_other_end_in_the_right_state(
    service: FirebaseRealtime, tree: Tree, follow: Follow
) -> None:
    next_event = await follow(messages_of(service), ADA)
    view: dict[str, Any] = {}
    apply(view, await next_event())

    async def write() -> list[str]:
        return [await service.send_direct_message("charles", "ada", {"status": str(n)}) for n in range(500)]

    writing = asyncio.create_task(write())
    while not (writing.done() and view.keys() >= set(writing.result())):
        apply(view, await next_event())
    assert view.keys() == set(await tree.get(INBOX))


async def test_a_consumer_that_was_slow_gets_few_events(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    next_event = await follow(messages_of(service), ADA)
    view: dict[str, Any] = {}
    apply(view, await next_event())

    await asyncio.gather(*(tree.put(f"{INBOX}/m{n:03}", {"status": str(n)}) for n in range(500)))

    events = 0
    while len(view) < 400:
        apply(view, await next_event())
        events += 1
    assert events < 250


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_consumer_that_applies_what_it_is_told_has_what_a_snapshot_has(
    service: FirebaseRealtime, tree: Tree, follow: Follow, seed: int
) -> None:
    """Random writes: messages that come, change, are read, change hands, go; one by one, together and in bursts."""
    chance = random.Random(seed)
    keys = [f"m{n:02}" for n in range(80)]
    next_event = await follow(messages_of(service), ADA_AT_ACME)
    view: dict[str, Any] = {}
    apply(view, await next_event())

    def message() -> dict[str, Any] | None:
        if chance.random() < 0.25:
            return None
        company = chance.choice(["acme", "acme", "other"])
        return {"collection_id": company, "status": str(chance.randrange(5)), "read": chance.random() < 0.2}

    for step in range(30):
        some = chance.sample(keys, chance.choice([1, 1, 3, 10, 70]))
        await tree.patch(INBOX, {key: message() for key in some})
        if step % 5 == 4:
            # All that was written before the mark has been told when the mark has.
            await tree.put(f"{INBOX}/z{step:02}", {"collection_id": "acme", "status": "mark"})
            while f"z{step:02}" not in view:
                apply(view, await next_event())
            [snapshot] = await messages_of(service).snapshot(ADA_AT_ACME)
            assert view == {item["doc_id"]: item for item in snapshot.payload["messages"]}
            assert snapshot.payload["count"] == len(view)


def apply(view: dict[str, Any], event: Event) -> None:
    """What a consumer does with an event."""
    if event.type == "msg.sync":
        view.clear()
        view.update({item["doc_id"]: item for item in event.payload["messages"]})
    else:
        view[event.payload["doc_id"]] = event.payload


async def test_a_full_window_tells_new_ones_one_by_one(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    keys = PushIds()
    old = {keys.next(): {"status": str(n)} for n in range(520)}
    await tree.put(INBOX, old)
    next_event = await follow(messages_of(service), ADA)
    sync = await next_event()
    assert sync.payload["count"] == 500

    for n in range(3):
        sent = await service.send_direct_message("charles", "ada", {"status": f"new {n}"})
        new = await next_event()
        assert (new.type, new.payload["doc_id"]) == ("msg.new", sent)

    await service.delete_direct_message("ada", sent)
    after = await next_event()
    assert after.type == "msg.sync"
    assert sent not in shown(after)


async def test_malformed_messages_do_not_end_the_stream(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    odd = {
        "status": {"a": [1]}, "timestamp": "yesterday", "file_name": ["x"], "additional_info": {"message": None},
        "collection_id": 1.5, "job_id": True,
    }  # fmt: skip
    await tree.put(INBOX, {"m0": odd, "m1": "text", "m2": 3, "m3": ["list"]})
    next_event = await follow(messages_of(service), ADA)

    for sync in (await next_event(), *await messages_of(service).snapshot(ADA)):
        assert shown(sync) == ["m0"]
        encode(sync)
    await tree.put(f"{INBOX}/m4", odd)
    new = await next_event()
    assert (new.type, new.payload["message"]) == ("msg.new", "Document - info")
    # A node that is a list, a node that is a value, no node.
    await tree.put(INBOX, [odd, None, odd])
    listed = await next_event()
    assert (listed.type, sorted(shown(listed))) == ("msg.sync", ["0", "2"])
    await tree.put(INBOX, "text")
    assert shown(await next_event()) == []


async def test_huge_messages_are_told_all_the_same(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    huge = "x" * 450_000
    for n in range(3):
        await tree.put(f"{INBOX}/m{n}", {"additional_info": huge, "more": huge})
    next_event = await follow(messages_of(service), ADA)

    for sync in (await next_event(), *await messages_of(service).snapshot(ADA)):
        assert sorted(shown(sync)) == ["m0", "m1", "m2"]
        assert len(encode(sync)) < MAX_EVENT_BYTES
    await tree.patch(f"{INBOX}/m0", {"status": huge})
    new = await next_event()
    assert new.payload["status"].endswith("x…")
    assert len(encode(new)) < MAX_EVENT_BYTES


async def test_ids_are_the_same_from_two_replicas_and_differ_between_events(
    service: FirebaseRealtime, tree: Tree, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "minute", lambda: "2025-09-20T11:44")
    one, other = await follow(messages_of(service), ADA), await follow(messages_of(service), ADA)
    await one()
    await other()
    seen = []
    for value in ({"status": "a"}, {"status": "b"}, {"status": "a"}, {"status": "b"}):
        await tree.put(f"{INBOX}/m1", value)
        first, second = await one(), await other()
        assert (first.type, first.id) == (second.type, second.id)
        assert first.id
        seen.append(first.id)

    assert len(set(seen)) == len(seen)


async def test_watching_writes_nothing(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    await tree.put(INBOX, {"m0": {"status": "x", "read": False}, "m1": {"status": "y"}})
    before = await tree.text()

    next_event = await follow(messages_of(service), ADA)
    await next_event()
    await messages_of(service).snapshot(ADA)
    assert await tree.text() == before

    await tree.patch(INBOX, {"m2": {"status": "z"}})
    after = await tree.text()
    assert (await next_event()).type == "msg.new"
    assert await tree.text() == after


async def test_closing_ends_the_watch(service: FirebaseRealtime, follow: Follow) -> None:
    listener = messages_of(service)
    changes: Any = listener.changes(ADA)
    await asyncio.wait_for(anext(changes), 20)
    assert service.database.stats().streams == 1
    await changes.aclose()
    assert service.database.stats().streams == 0


async def test_a_user_whose_id_the_database_cannot_hold_has_no_messages(
    service: FirebaseRealtime, follow: Follow
) -> None:
    user = User(uid="ada@example.org")
    next_event = await follow(messages_of(service), user)

    for sync in (await next_event(), *await messages_of(service).snapshot(user)):
        assert (sync.type, shown(sync), sync.payload["count"]) == ("msg.sync", [], 0)


async def test_without_its_bound_a_burst_is_a_flood(
    service: FirebaseRealtime, tree: Tree, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test of a burst."""
    monkeypatch.setattr(window, "BURST", 1_000)
    next_event = await follow(messages_of(service), ADA)
    await next_event()
    await tree.patch(INBOX, {f"m{n:03}": {"status": str(n)} for n in range(500)})

    flood = [(await next_event()).payload["doc_id"] for _ in range(500)]
    assert flood == [f"m{n:03}" for n in range(500)]

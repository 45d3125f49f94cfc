"""`chat.sync` and `chat.message`: what they hold, how changes reach consumers, and that watching writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from callboard import Event, Listener, Thread, Unavailable, User
from callboard.events.bus import MAX_EVENT_BYTES
from callboard.messages import encode
from callboard_firebase.realtime import PushIds
from callboard_firebase_realtime import FirebaseRealtime, window
from callboard_local import RealtimeProcess

from .conftest import Next, Tree, chat_of

pytestmark = pytest.mark.anyio

Follow: TypeAlias = Callable[[Listener[Any], User], Awaitable[Next]]
MESSAGES = "acme/chats/t1/messages"
ADA = User(uid="ada")
CHATS = Thread("acme", "t1", "chats")


def shown(event: Event) -> list[str]:
    return [message["id"] for message in event.payload.get("messages") or event.payload.get("raw_messages") or []]


def contents(event: Event) -> list[str]:
    return [message["content"] for message in event.payload.get("messages") or event.payload.get("raw_messages") or []]


async def test_snapshot(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(MESSAGES, {f"m{n}": {"content": str(n)} for n in range(3)})
    await tree.put("acme/job_chats/t1/messages/other", {"content": "x"})
    await tree.put("acme/chats/t2/messages/other", {"content": "x"})
    before = datetime.now(UTC)

    [sync] = await chat_of(service, CHATS).snapshot(ADA)

    assert (sync.type, sync.uid) == ("chat.sync", "ada")
    assert sync.payload == {
        "space_code": "acme",
        "thread_key": "t1",
        "mode": "chats",
        "messages": [{"content": str(n), "id": f"m{n}"} for n in range(3)],
        "count": 3,
    }
    assert sync.as_of is not None
    assert (before - datetime.fromisoformat(sync.as_of)).total_seconds() > 4


@pytest.mark.parametrize("thread", [Thread("a.b", "t1"), Thread("acme", "t.1", "chats"), Thread("clients", "ada")])
async def test_a_thread_that_cannot_exist_is_empty(
    service: FirebaseRealtime, tree: Tree, follow: Follow, thread: Thread
) -> None:
    await tree.put("clients/chats/ada/messages/m1", {"content": "no space's"})
    [snapshot] = await chat_of(service, thread).snapshot(ADA)
    following = await (await follow(chat_of(service, thread), ADA))()
    for sync in (snapshot, following):
        assert (sync.type, sync.payload["mode"], sync.payload["messages"]) == ("chat.sync", None, [])


async def test_sync_then_deltas(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    await tree.put(MESSAGES, {"m0": {"content": "old", "read": False}})
    next_event = await follow(chat_of(service, CHATS), ADA)
    sync = await next_event()
    assert (sync.type, contents(sync), sync.payload["count"]) == ("chat.sync", ["old"], 1)

    sent = await service.send_realtime_message_structured("charles", "acme", "t1", "new", mode="chats")
    new = await next_event()
    assert (new.type, new.uid) == ("chat.message", "ada")
    assert new.payload.keys() == {"space_code", "thread_key", "mode", "raw_messages"}
    assert (new.payload["space_code"], new.payload["thread_key"]) == ("acme", "t1")
    [message] = new.payload["raw_messages"]
    assert message == {**(await tree.get(f"{MESSAGES}/{sent}")), "id": sent}

    # A changed message comes again, with its id.
    await service.mark_chat_read("acme", "t1", ["m0"], "chats")
    read = await next_event()
    assert (read.type, read.payload["raw_messages"]) == ("chat.message", [{"content": "old", "read": True, "id": "m0"}])

    # Several that come together are one event, in order.
    await tree.patch(MESSAGES, {"z2": {"content": "2"}, "z1": {"content": "1"}, "m0/content": "edited"})
    together = await next_event()
    assert (together.type, shown(together)) == ("chat.message", ["m0", "z1", "z2"])

    # A deleted one makes a sync; so does an erased thread.
    await tree.put(f"{MESSAGES}/z1", None)
    gone = await next_event()
    assert gone.type == "chat.sync"
    assert set(shown(gone)) == {"m0", sent, "z2"}
    await service.erase_chat("ada", "acme", "t1")
    erased = await next_event()
    assert (erased.type, shown(erased), erased.payload["count"]) == ("chat.sync", [], 0)

    await service.send_realtime_message_structured("ada", "acme", "t1", "again", mode="chats")
    assert contents(await next_event()) == ["again"]


async def test_the_name_of_a_thread_is_no_message(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    next_event = await follow(chat_of(service, CHATS), ADA)
    await next_event()
    await tree.put("acme/chats/t1/thread_name", "renamed")
    await tree.put(f"{MESSAGES}/stub", {"read": True})
    await tree.put(f"{MESSAGES}/m1", {"content": "x"})
    assert shown(await next_event()) == ["m1"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_burst_ends_in_the_right_state(
    service: FirebaseRealtime, tree: Tree, follow: Follow, at_once: bool
) -> None:
    next_event = await follow(chat_of(service, CHATS), ADA)
    await next_event()
    keys = PushIds()
    burst = {keys.next(): {"content": str(n), "read": False} for n in range(500)}

    async def write() -> None:
        if at_once:
            await tree.patch(MESSAGES, burst)
            return
        for key, message in burst.items():
            await tree.put(f"{MESSAGES}/{key}", message)

    writing = asyncio.create_task(write())
    view: dict[str, Any] = {}
    events = 0
    while len(view) < 500:
        event = await next_event()
        events += 1
        told = event.payload["messages" if event.type == "chat.sync" else "raw_messages"]
        view = {**({} if event.type == "chat.sync" else view), **{message["id"]: message for message in told}}
        assert len(encode(event)) < MAX_EVENT_BYTES
    await writing

    assert view == {key: {**message, "id": key} for key, message in burst.items()}
    assert list(view) == list(burst)
    assert events == 1 or not at_once


async def test_what_comes_together_is_bounded_in_bytes(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    next_event = await follow(chat_of(service, CHATS), ADA)
    await next_event()
    await tree.patch(MESSAGES, {f"m{n}": {"content": "x" * 60_000} for n in range(8)})

    told: list[str] = []
    while len(told) < 8:
        event = await next_event()
        assert event.type == "chat.message"
        assert len(encode(event)) < MAX_EVENT_BYTES
        told += shown(event)
    assert told == [f"m{n}" for n in range(8)]


async def test_the_sync_is_bounded(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    await tree.put(MESSAGES, {f"m{n:03}": {"content": "x" * 1_000} for n in range(600)})
    next_event = await follow(chat_of(service, CHATS), ADA)

    for sync in (await next_event(), *await chat_of(service, CHATS).snapshot(ADA)):
        assert 150 * 1024 < len(encode(sync)) < MAX_EVENT_BYTES
        assert shown(sync) == [f"m{n:03}" for n in range(600 - len(shown(sync)), 600)]
        assert sync.payload["count"] == 500


async def test_a_huge_message_is_told_cut(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    huge = {"content": "x" * 450_000, "sender_id": "ada", "more": {"y": "z" * 450_000}}
    await tree.put(f"{MESSAGES}/m0", huge)
    next_event = await follow(chat_of(service, CHATS), ADA)

    for sync in (await next_event(), *await chat_of(service, CHATS).snapshot(ADA)):
        assert (shown(sync), sync.payload["messages"][0]["truncated"]) == (["m0"], True)
        assert len(encode(sync)) < MAX_EVENT_BYTES
    await tree.put(f"{MESSAGES}/m1", huge)
    new = await next_event()
    assert (shown(new), new.payload["raw_messages"][0]["truncated"]) == (["m1"], True)
    [whole] = await service.get_channel_messages("acme", "t1", 1, "chats")
    assert whole == {**huge, "id": "m1"}


async def test_malformed_messages_do_not_end_the_stream(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    await tree.put(MESSAGES, {"m0": "text", "m1": {"content": {"a": [1]}}, "m2": 3})
    next_event = await follow(chat_of(service, CHATS), ADA)
    sync = await next_event()
    assert contents(sync) == ["text", {"a": [1]}, 3]

    await tree.put(MESSAGES, ["zero", None, {"content": "two"}])
    listed = await next_event()
    assert (listed.type, shown(listed)) == ("chat.sync", ["0", "2"])
    await tree.put(MESSAGES, "text")
    assert shown(await next_event()) == []


async def test_auto_takes_the_kind_that_exists(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    for key, modes in {"chat": ["chats"], "job": ["job_chats"], "both": ["chats", "job_chats"]}.items():
        for mode in modes:
            await tree.put(f"acme/{mode}/{key}", {"thread_name": key, "messages": {"m0": {"content": mode}}})
    await tree.put("acme/job_chats/named", {"thread_name": "without a message"})

    for key, mode in {"chat": "chats", "job": "job_chats", "both": "chats", "named": "job_chats"}.items():
        thread = Thread("acme", key, "auto")
        next_event = await follow(chat_of(service, thread), ADA)
        for sync in (await next_event(), *await chat_of(service, thread).snapshot(ADA)):
            assert (sync.type, sync.payload["mode"]) == ("chat.sync", mode)
            assert contents(sync) == ([] if key == "named" else [mode])
        await tree.put(f"acme/{mode}/{key}/messages/m1", {"content": "new"})
        assert contents(await next_event()) == ["new"]


@pytest.mark.parametrize("mode", ["chats", "job_chats"])
async def test_auto_waits_for_the_first_message_of_either_kind(
    service: FirebaseRealtime, tree: Tree, follow: Follow, mode: Any
) -> None:
    thread = Thread("acme", "t1", "auto")
    next_event = await follow(chat_of(service, thread), ADA)
    for sync in (await next_event(), *await chat_of(service, thread).snapshot(ADA)):
        assert (sync.type, sync.payload["mode"], shown(sync)) == ("chat.sync", None, [])

    sent = await service.send_realtime_message_structured("ada", "acme", "t1", "first", mode=mode)
    first = await next_event()
    assert (first.payload["mode"], shown(first)) == (mode, [sent])
    while service.database.stats().streams > 1:  # the other kind's is let go
        await asyncio.sleep(0.01)

    await service.send_realtime_message_structured("ada", "acme", "t1", "second", mode=mode)
    second = await next_event()
    assert (second.type, contents(second)) == ("chat.message", ["second"])


async def test_ids_are_the_same_from_two_replicas_and_differ_between_events(
    service: FirebaseRealtime, tree: Tree, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "minute", lambda: "2025-09-20T11:44")
    one, other = await follow(chat_of(service, CHATS), ADA), await follow(chat_of(service, CHATS), ADA)
    await one()
    await other()
    seen = []
    for values in (
        {"m1": {"content": "a", "read": False}},
        {"m1/read": True},
        {"m1/read": False},
        {"m1/read": True, "m2": {"content": "b"}},
    ):
        await tree.patch(MESSAGES, values)
        first, second = await one(), await other()
        assert (first.type, first.id) == (second.type, second.id) == ("chat.message", first.id)
        seen.append(first.id)

    assert all(seen)
    assert len(set(seen)) == len(seen)


async def test_watching_writes_nothing(service: FirebaseRealtime, tree: Tree, follow: Follow) -> None:
    await tree.put("acme/job_chats/t1", {"messages": {"m0": {"content": "x", "read": False}, "m1": {"content": "y"}}})
    before = await tree.text()

    for mode in ("chats", "job_chats", "auto"):
        thread = Thread("acme", "t1", mode)
        next_event = await follow(chat_of(service, thread), ADA)
        await next_event()
        await chat_of(service, thread).snapshot(ADA)
    assert await tree.text() == before

    await tree.put("acme/job_chats/t1/messages/m2", {"content": "z", "read": False})
    after = await tree.text()
    assert (await next_event()).payload["raw_messages"][0]["read"] is False
    assert await tree.text() == after


async def test_closing_ends_the_watches(service: FirebaseRealtime) -> None:
    for mode, streams in (("chats", 1), ("auto", 2)):
        changes: Any = chat_of(service, Thread("acme", "t1", mode)).changes(ADA)  # type: ignore[arg-type]
        await asyncio.wait_for(anext(changes), 20)
        following = asyncio.create_task(_following(changes))
        while service.database.stats().streams < streams:
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.wait([following])
        await changes.aclose()
        assert service.database.stats().streams == 0


async def _following(changes: Any) -> Any:
    return await anext(changes)


async def test_after_an_outage_what_has_changed_is_told_and_nothing_twice(
    make_service: Callable[..., FirebaseRealtime], follow: Follow, tmp_path: Path
) -> None:
    async with RealtimeProcess(data=tmp_path / "tree") as server:
        environ = {"FIREBASE_DATABASE_EMULATOR_HOST": server.address, "FIREBASE_REALTIME_DB_URL": server.url}
        service = make_service(environ)
        await service.open()
        for n in range(3):
            await service.database.set(f"{MESSAGES}/m{n}", {"content": str(n)})
        next_event = await follow(chat_of(service, CHATS), ADA)
        assert shown(await next_event()) == ["m0", "m1", "m2"]

        await server.kill()
        await server.restart()
        while True:
            try:
                await service.database.update(MESSAGES, {"m1/content": "edited", "m3": {"content": "3"}})
                break
            except Unavailable:
                await asyncio.sleep(0.05)

        after = await next_event()
        assert (after.type, shown(after)) == ("chat.message", ["m1", "m3"])

"""Which kind an open thread is of; what is seen of it; faults of the watches beneath."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from callboard import PermissionDenied, Thread, Unavailable
from callboard_firebase_realtime import FirebaseRealtime
from callboard_firebase_realtime.open_thread import Seen, find_mode, watch_thread
from callboard_local import RealtimeProcess

from .conftest import Tree

pytestmark = pytest.mark.anyio

AUTO = Thread("acme", "t1", "auto")
NOTHING = Seen(None, True, [], {})


@pytest.fixture
async def own(make_service: Callable[..., FirebaseRealtime], own_realtime: RealtimeProcess) -> FirebaseRealtime:
    """The service on a database that the test may break."""
    environ = {
        "FIREBASE_DATABASE_EMULATOR_HOST": own_realtime.address,
        "FIREBASE_REALTIME_DB_URL": own_realtime.url,
    }
    service = make_service(environ)
    await service.open()
    return service


async def seen(watch: AsyncIterator[Seen]) -> Seen:
    async with asyncio.timeout(20):
        return await anext(watch)


async def test_the_kind_of_a_thread(service: FirebaseRealtime, tree: Tree) -> None:
    assert await find_mode(service.database, AUTO) is None
    assert await find_mode(service.database, Thread("acme", "t1", "job_chats")) == "job_chats"
    await tree.put("acme/job_chats/t1/thread_name", "x")
    assert await find_mode(service.database, AUTO) == "job_chats"
    await tree.put("acme/chats/t1/thread_name", "x")
    assert await find_mode(service.database, AUTO) == "chats"
    await tree.put("acme/job_chats/t1/messages/m1", {"content": "x"})
    assert await find_mode(service.database, AUTO) == "job_chats"
    await tree.put("acme/chats/t1/messages/m1", {"content": "x"})
    assert await find_mode(service.database, AUTO) == "chats"


async def test_a_thread_that_has_a_name_alone_is_of_the_kind_of_its_first_message(
    service: FirebaseRealtime, tree: Tree
) -> None:
    """As the methods' own defaults have it: a chat is made in `chats`, a message is sent to `job_chats`."""
    chat = await service.create_chat("ada", "acme", "Payroll")
    async with aclosing(watch_thread(service.database, Thread("acme", chat.thread_key))) as watch:
        assert await seen(watch) == Seen("chats", True, [], {})
        sent = await service.send_realtime_message_structured("ada", "acme", chat.thread_key, "hello")
        first = await seen(watch)
        assert (first.mode, first.changed) == ("job_chats", [sent])


async def test_the_first_message_of_either_kind_decides(service: FirebaseRealtime, tree: Tree) -> None:
    async with aclosing(watch_thread(service.database, AUTO)) as watch:
        assert await seen(watch) == NOTHING
        await tree.patch("acme", {"chats/t1/thread_name": "named alone", "job_chats/t1/messages/m1": {"content": "x"}})
        first = await seen(watch)
        assert (first.mode, first.initial, first.changed) == ("job_chats", False, ["m1"])
        assert dict(first.children) == {"m1": {"content": "x"}}
        assert await find_mode(service.database, AUTO) == "job_chats"

        await tree.put("acme/chats/t1/messages/m1", {"content": "of the other kind"})
        await tree.put("acme/job_chats/t1/messages/m2", {"content": "y"})
        second = await seen(watch)
        assert (second.mode, second.initial, second.changed) == ("job_chats", False, ["m2"])


@pytest.mark.parametrize("kind", ["chats", "job_chats"])
async def test_a_watch_that_may_not_go_on_ends_both(
    own: FirebaseRealtime, own_realtime: RealtimeProcess, kind: str
) -> None:
    async with aclosing(watch_thread(own.database, AUTO)) as watch:
        assert await seen(watch) == NOTHING
        following = asyncio.create_task(_next(watch))
        while own.database.stats().connected < 2:
            await asyncio.sleep(0.01)
        await own_realtime.control("cancel", ns="demo", path=f"/acme/{kind}/t1", data="Permission denied")
        with pytest.raises(PermissionDenied):
            await following
    assert own.database.stats().streams == 0


async def test_a_database_that_comes_back_tells_what_has_changed_alone(
    own: FirebaseRealtime, own_realtime: RealtimeProcess
) -> None:
    path = "acme/chats/t1/messages"
    messages = {f"m{n}": {"content": str(n)} for n in range(30)}
    await own.database.set(path, messages)
    async with aclosing(watch_thread(own.database, AUTO)) as watch:
        first = await seen(watch)
        assert (first.mode, first.initial, len(first.children)) == ("chats", True, 30)

        await own_realtime.control("drop", ns="demo", path="/")
        await own.database.set(f"{path}/m30", {"content": "while away"})
        after = await seen(watch)
        assert (after.initial, after.changed) == (False, ["m30"])
        assert len(after.children) == 31


async def test_closing_the_service_ends_the_watch(own: FirebaseRealtime) -> None:
    async with aclosing(watch_thread(own.database, AUTO)) as watch:
        assert await seen(watch) == NOTHING
        following = asyncio.create_task(_next(watch))
        while own.database.stats().connected < 2:
            await asyncio.sleep(0.01)
        await own.firebase.__aexit__(None, None, None)
        with pytest.raises(Unavailable):
            await following


async def _next(watch: AsyncIterator[Seen]) -> Seen:
    return await anext(watch)

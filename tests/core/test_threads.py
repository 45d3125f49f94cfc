"""Chat threads: which are wanted here, and their listeners, each run by one of the replicas that have it open."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from typing import Any

import pytest
from core.replicas import (
    LEASE_TTL_S,
    Heard,
    Replica,
    Shop,
    eventually,
    fall_silent,
    hearing,
    lease_owner,
    min_renewed,
    replica,
)
from redis.asyncio import Redis

from callboard.errors import FailedPrecondition, InvalidArgs, Unavailable
from callboard.fleet.threads import MAX_ASKED_FOR, Threads
from callboard.messages import Event
from callboard.service import Listener, Thread, User, listener
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio

MESSAGES = "shop.messages"
ONE, TWO = Thread("acme", "-N1", "chats"), Thread("acme", "-N2", "chats")


class Chat(Shop):
    """A shop with a chat: what was begun, read and closed, by user, thread and mode; feeds by user and thread key."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[tuple[User, Thread]] = []
        self.read: list[tuple[User, Thread]] = []
        self.closed: Counter[str] = Counter()
        self.feeds: dict[tuple[str, str], asyncio.Queue[Event]] = {}

    def say(self, uid: str, thread: Thread, text: str, type: str = "chat.message") -> None:  # noqa: A002
        self.feeds[uid, thread.thread_key].put_nowait(Event(type=type, uid=uid, payload={"text": text}))

    @listener(per="thread")
    class Messages(Listener["Chat"]):
        async def snapshot(self, user: User) -> list[Event]:
            self.service.read.append((user, self.thread))
            payload = {"thread_key": self.thread.thread_key, "mode": self.thread.mode}
            return [Event(type="chat.sync", uid=user.uid, payload=payload)]

        async def changes(self, user: User) -> AsyncIterator[Event]:
            feed: asyncio.Queue[Event] = asyncio.Queue()
            key = user.uid, self.thread.thread_key
            self.service.feeds[key] = feed
            self.service.begun.append((user, self.thread))
            try:
                while True:
                    yield await feed.get()
            finally:
                if self.service.feeds[key] is feed:
                    del self.service.feeds[key]
                self.service.closed[self.thread.thread_key] += 1


def chat(one: Replica) -> Chat:
    assert isinstance(one.shop, Chat)
    return one.shop


def running(one: Replica, thread: Thread, uid: str = "ann") -> bool:
    rows = [row for row in one.listeners.status() if (row["uid"], row["listener"]) == (uid, MESSAGES)]
    return any(row["thread"].place == thread.place and row["state"] == "listening" for row in rows)


def opened(one: Replica, thread: Thread, uid: str = "ann") -> AbstractContextManager[None]:
    return one.listeners.keeping_open(uid, thread)


def a_replica(server: ValkeyServer, **options: Any) -> Any:
    return replica(server, service=Chat(), **options)


@pytest.fixture
async def heard(own_valkey: ValkeyServer) -> AsyncIterator[Heard]:
    async with hearing(own_valkey, "chat:ann:acme:-N1") as heard:
        yield heard


async def test_a_thread_is_listened_to_while_it_is_open(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey) as one:
        with opened(one, ONE):
            [sync] = await heard.until("chat.sync")
            assert sync["payload"] == {"thread_key": "-N1", "mode": "chats"}
            await eventually(lambda: running(one, ONE))
            chat(one).say("ann", ONE, "hello")
            [message] = await heard.until("chat.message")
            assert sync["fence"] == message["fence"] > 0
            assert sync["listener"] == message["listener"] == f"{MESSAGES}:acme:-N1"

            assert await lease_owner(own_valkey, f"{MESSAGES}:acme:-N1", "ann")
            [row] = one.listeners.status()  # she is not online: none of her own listeners run
            assert (row["listener"], row["uid"], row["thread"]) == (MESSAGES, "ann", ONE)
            assert one.metric("callboard_listeners_active", MESSAGES) == one.listeners.active_count() == 1
            assert 0 <= one.metric("callboard_listener_last_event_age_seconds", MESSAGES) < 60
            assert one.listeners.is_active("ann", "messages")

        await eventually(lambda: not one.listeners._roster._tasks())  # ended, and released
        assert chat(one).closed == {"-N1": 1}
        assert await lease_owner(own_valkey, f"{MESSAGES}:acme:-N1", "ann") is None
        assert one.listeners._threads.users() == []
        [line] = one.logged("listener_start")
        assert line["listener"] == MESSAGES
        assert line["thread"] == one.telemetry.user("acme:-N1")
        assert "-N1" not in one.stream.getvalue()


async def test_two_sockets_of_one_thread_share_a_listener(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey) as one:
        with opened(one, ONE):
            with opened(one, ONE):
                await heard.until("chat.sync")
            one.listeners._threads.forget(0)  # as when the grace is over
            one.listeners._attendance._check_threads()
            chat(one).say("ann", ONE, "still here")
            await heard.until("chat.message")
            assert len(chat(one).begun) == 1
            assert chat(one).closed == {}


async def test_threads_and_users_are_kept_apart(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with (
        a_replica(own_valkey) as one,
        hearing(own_valkey, "chat:ann:acme:-N2") as second,
        hearing(own_valkey, "chat:bob:acme:-N1") as bobs,
    ):
        with opened(one, ONE), opened(one, TWO), opened(one, ONE, "bob"):
            for each in (heard, second, bobs):
                await each.until("chat.sync")
            await eventually(lambda: one.listeners.active_count(MESSAGES) == 3)
            chat(one).say("ann", TWO, "two")
            chat(one).say("bob", ONE, "bob's")
            chat(one).say("ann", ONE, "one")
            for each, text in ((heard, "one"), (second, "two"), (bobs, "bob's")):
                assert [event["payload"]["text"] for event in await each.until("chat.message")] == [text]
            names = {event["listener"] for each in (heard, second, bobs) for event in each.events}
            assert names == {f"{MESSAGES}:acme:-N1", f"{MESSAGES}:acme:-N2"}


@pytest.mark.parametrize("grace_s", [3_600.0, 0.0])
async def test_a_reload_within_the_grace_tears_nothing_down(own_valkey: ValkeyServer, grace_s: float) -> None:
    async with a_replica(own_valkey, grace_s=grace_s) as one:
        with opened(one, ONE):
            await eventually(lambda: running(one, ONE))
        one.listeners._attendance._check_threads()
        if not grace_s:  # the control
            await eventually(lambda: not one.listeners.status())
        with opened(one, ONE):
            one.listeners._attendance._check_threads()
            await eventually(lambda: running(one, ONE))
            assert len(chat(one).begun) == len(one.logged("listener_attached")) == (1 if grace_s else 2)
            assert chat(one).closed == ({} if grace_s else {"-N1": 1})


async def test_stopping_again_and_again_does_not_keep_the_lease(own_valkey: ValkeyServer) -> None:
    async with a_replica(own_valkey, grace_s=0.0, lease_ttl_s=3_600) as one:
        with opened(one, ONE):
            await eventually(lambda: running(one, ONE))
        while one.listeners.status():
            one.listeners._attendance._check_threads()
            await asyncio.sleep(0)
        await eventually(lambda: not one.listeners._roster._tasks())
        assert await lease_owner(own_valkey, f"{MESSAGES}:acme:-N1", "ann") is None
        assert one.logged("task_died") == []


async def test_of_two_replicas_one_listens_and_hands_over_when_it_is_closed(
    own_valkey: ValkeyServer, heard: Heard
) -> None:
    async with a_replica(own_valkey, name="one") as one, a_replica(own_valkey, name="two") as two:
        with opened(two, ONE):
            with opened(one, ONE):
                await eventually(lambda: running(one, ONE) or running(two, ONE))
                owner, other = (one, two) if running(one, ONE) else (two, one)
                since = min_renewed(owner)
                await eventually(lambda: min_renewed(owner) > since + LEASE_TTL_S)
                assert not other.listeners.status(), "as long as the owner renews, nobody takes over"
                assert await other.listeners.owner("ann", "messages", ONE) == ("one" if owner is one else "two")
            await eventually(lambda: running(two, ONE) and not one.listeners.status())
            chat(two).say("ann", ONE, "after")
            await heard.until("chat.message")
            assert one.logged("listener_lost") == two.logged("listener_lost") == []
        types = [event["type"] for event in heard.events]
        assert types == (["chat.sync"] * (2 if owner is one else 1)) + ["chat.message"]


async def test_an_owner_that_goes_silent_is_taken_over_with_a_sync_and_is_mute(
    own_valkey: ValkeyServer, heard: Heard
) -> None:
    async with a_replica(own_valkey) as one:
        with opened(one, ONE):
            [first] = await heard.until("chat.sync")
            async with a_replica(own_valkey) as two:
                with opened(two, ONE):
                    fall_silent(one)
                    [_, second] = await heard.until("chat.sync", 2)
                    assert second["fence"] > first["fence"]
                    await eventually(lambda: running(two, ONE))
                    chat(one).say("ann", ONE, "stale")  # it still listens …
                    chat(two).say("ann", ONE, "fresh")
                    await heard.until("chat.message")
                    await eventually(lambda: one.listeners.status()[0]["state"] == "muted")
                    texts = [event["payload"]["text"] for event in heard.of("chat.message")]
                    assert texts == ["fresh"]  # … and says nothing
                    assert [line["listener"] for line in two.logged("listener_taken_over")] == [MESSAGES]


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_opens_and_closes_each_open_thread_has_one_listener(own_valkey: ValkeyServer, seed: int) -> None:
    chance = random.Random(seed)
    places = [(uid, thread) for uid in ("ann", "bob", "eve") for thread in (ONE, TWO)]
    async with a_replica(own_valkey, grace_s=0.0) as one, a_replica(own_valkey, grace_s=0.0) as two:
        sockets: list[tuple[Replica, str, Thread, ExitStack]] = []
        for _ in range(80):
            if sockets and chance.random() < 0.5:
                sockets.pop(chance.randrange(len(sockets)))[3].close()
            else:
                at, (uid, thread) = chance.choice((one, two)), chance.choice(places)
                stack = ExitStack()
                stack.enter_context(opened(at, thread, uid))
                sockets.append((at, uid, thread, stack))
            if chance.random() < 0.3:
                await chance.choice((one, two)).listeners._attendance.check()

        def is_settled() -> bool:
            for each in (one, two):
                # What was closed while it was being taken begins, and ends at the next look.
                if each.listeners._roster._taking or {row["state"] for row in each.listeners.status()} - {"listening"}:
                    return False
            for uid, thread in places:
                wanting = {id(at) for at, *place, _ in sockets if place == [uid, thread]}
                run_by = [id(at) for at in (one, two) if running(at, thread, uid)]
                if len(run_by) != bool(wanting) or not wanting.issuperset(run_by):
                    return False
            return True

        await eventually(is_settled)
        begun = len(chat(one).begun), len(chat(two).begun)
        since = min_renewed(one), min_renewed(two)
        await eventually(lambda: min_renewed(one) > since[0] + LEASE_TTL_S or not one.listeners.status())
        await eventually(lambda: min_renewed(two) > since[1] + LEASE_TTL_S or not two.listeners.status())
        assert (len(chat(one).begun), len(chat(two).begun)) == begun, "and it stays so"
        assert is_settled()
        for *_, stack in sockets:
            stack.close()
        await eventually(lambda: not one.listeners.status() and not two.listeners.status())
        # A replica that runs nothing forgets its threads when it looks at them next, which the other does not wait for.
        await eventually(lambda: not one.listeners._threads.users() and not two.listeners._threads.users())
        for each in (one, two):
            assert each.logged("listener_lost") == each.logged("task_failed") == each.logged("task_died") == []


async def test_the_latest_explicit_mode_counts(own_valkey: ValkeyServer, heard: Heard) -> None:
    def modes(one: Replica) -> list[str]:
        return [thread.mode for _, thread in chat(one).begun]

    async with a_replica(own_valkey) as one:
        with opened(one, Thread("acme", "-N1")):
            await eventually(lambda: running(one, ONE))
            with opened(one, Thread("acme", "-N1", "job_chats")):
                await eventually(lambda: modes(one) == ["auto", "job_chats"])
            with opened(one, Thread("acme", "-N1")), opened(one, ONE):
                await eventually(lambda: modes(one) == ["auto", "job_chats", "chats"])
                await heard.until("chat.sync", 3)
                one.listeners.open_thread("ann", Thread("acme", "-N1"), 60)
                name = f"{MESSAGES}:acme:-N1"
                reading = await one.listeners.read_one("ann", name, Thread("acme", "-N1"))
                assert reading is not None
                assert reading.events[0].payload["mode"] == "chats", "a socket reads what the listener listens to"
        assert modes(one) == ["auto", "job_chats", "chats"]
        assert {event["payload"]["mode"] for event in heard.of("chat.sync")} == {"auto", "job_chats", "chats"}
        assert one.logged("listener_error") == []


async def test_a_call_opens_a_thread_for_a_time(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey, grace_s=0.0) as one:
        one.listeners.open_thread("ann", ONE, 0.2)
        await heard.until("chat.sync")
        await eventually(lambda: not one.listeners.status())  # nobody repeated it
        assert chat(one).closed == {"-N1": 1}

        one.listeners.open_thread("ann", ONE, 3_600)
        one.listeners.open_thread("ann", TWO, 3_600)
        await eventually(lambda: running(one, ONE) and running(one, TWO))
        one.listeners._attendance._check_threads()
        one.listeners.close_thread("ann", TWO)
        with opened(one, ONE):
            one.listeners.close_thread("ann", ONE)
            await eventually(lambda: not running(one, TWO))
            assert running(one, ONE)  # a socket has it open
        await eventually(lambda: not one.listeners.status())


async def test_a_call_moves_a_thread_to_the_replica_that_is_asked_now(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey, grace_s=0.0) as one, a_replica(own_valkey, grace_s=0.0) as two:
        one.listeners.open_thread("ann", ONE, 0.5)
        await eventually(lambda: running(one, ONE))
        two.listeners.open_thread("ann", ONE, 3_600)
        await eventually(lambda: running(two, ONE))
        await heard.until("chat.sync", 2)
        assert one.listeners.status() == []


async def test_what_calls_may_open_is_bounded() -> None:
    threads = Threads()
    for number in range(MAX_ASKED_FOR):
        threads.ask("ann", Thread("acme", f"-N{number}"), 60)
    with pytest.raises(FailedPrecondition):
        threads.ask("ann", Thread("acme", "one-more"), 60)
    threads.ask("ann", Thread("acme", "-N1"), 60)  # again
    threads.ask("bob", Thread("acme", "one-more"), 60)
    with threads.keeping_open("ann", Thread("acme", "one-more")):  # sockets are not bounded by it
        assert len(threads.of("ann")) == MAX_ASKED_FOR + 1
    for number in range(MAX_ASKED_FOR):
        threads.drop("ann", Thread("acme", f"-N{number}"))
    threads.ask("ann", Thread("acme", "one-more"), 60)
    threads.forget(0)
    assert [thread.thread_key for thread in threads.of("ann")] == ["one-more"]
    for wrong in (0, -1, 3_601, math.nan):
        with pytest.raises(InvalidArgs):
            threads.ask("ann", ONE, wrong)
    with pytest.raises(InvalidArgs):
        threads.ask("a/b", ONE, 60)


async def test_other_companies_restart_the_threads_too(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey) as one, a_replica(own_valkey) as two:
        await one.presence.register("ann", "tab", authorized_companies_ids=["acme"])
        with opened(one, ONE):
            await eventually(lambda: running(one, ONE))
            for teller, companies in ((one, {"acme", "b"}), (two, {"acme", "c"})):
                await teller.presence.register("ann", "tab", authorized_companies_ids=sorted(companies))
                await eventually(lambda: chat(one).begun[-1][0] == User("ann", frozenset(companies)))  # noqa: B023
            await two.presence.unregister("tab")
            await eventually(lambda: one.listeners.active_count() + two.listeners.active_count() == 1)
            await two.presence.register("ann", "tab", authorized_companies_ids=["acme"])
            await two.presence.unregister("tab")  # offline again, and other companies all the same
            await eventually(lambda: chat(one).begun[-1][0] == User("ann", frozenset({"acme"})))


async def test_an_event_that_no_socket_would_hear_is_refused(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey) as one:
        with opened(one, ONE):
            await eventually(lambda: running(one, ONE))
            chat(one).say("ann", ONE, "secret", type="notif.add")
            chat(one).say("ann", ONE, "hello")
            await heard.until("chat.message")
            [line] = one.logged("listener_error")
            assert (line["code"], line["refused"], line["listener"]) == ("INVALID_ARGS", 1, MESSAGES)
            assert [event["payload"]["text"] for event in heard.of("chat.message")] == ["hello"]


async def test_sync_tells_of_the_threads_that_are_open_here_or_named(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with (
        a_replica(own_valkey) as one,
        a_replica(own_valkey) as two,
        hearing(own_valkey, "user:ann") as own,
    ):
        with opened(one, ONE):
            await heard.until("chat.sync")
            assert await two.listeners.sync("ann") == (2, [])  # it does not know of the thread …
            assert await one.listeners.sync("ann") == (3, [])
            await heard.until("chat.sync", 2)
            await own.until("notif.sync", 4)
            assert await two.listeners.sync("ann", ONE) == (1, [])  # … unless it is told
            [*_, told] = await heard.until("chat.sync", 3)
            assert (told["listener"], "fence" in told) == (f"{MESSAGES}:acme:-N1", False)
            assert len(own.of("notif.sync")) == 4
        await own_valkey.kill()
        with pytest.raises(Unavailable):
            await two.listeners.sync("ann", ONE)


async def test_any_replica_knows_who_runs_a_thread(own_valkey: ValkeyServer) -> None:
    async with (
        a_replica(own_valkey, name="host:one") as one,
        replica(own_valkey, name="two") as two,  # as one of another release, or without the plugin
    ):
        with opened(one, ONE):
            await eventually(lambda: running(one, ONE))
            for name in ("messages", MESSAGES):
                assert await one.listeners.owner("ann", name, ONE) == "host:one"
                assert await one.listeners.owner("ann", name, TWO) is None
                with pytest.raises(InvalidArgs):
                    await one.listeners.owner("ann", name)
            assert await two.listeners.owner("ann", MESSAGES, ONE) == "host:one"
            assert await two.listeners.owner("ann", MESSAGES) is None
            await one.presence.register("ann", "tab")
            await eventually(lambda: one.listeners.active_count("items") + two.listeners.active_count("items") == 1)
            assert await one.listeners.owner("ann", "items", ONE) in ("host:one", "two"), "which has nothing of threads"
            with opened(two, ONE):  # a replica without such listeners keeps no account
                assert two.listeners._threads.users() == []
            two.listeners.open_thread("ann", ONE, 60)
            assert two.listeners._threads.users() == []


async def test_drain_hands_threads_over(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey, lease_ttl_s=3_600) as one:
        with opened(one, ONE):
            await eventually(lambda: running(one, ONE))
            async with a_replica(own_valkey) as two:
                with opened(two, ONE):
                    await one.listeners.drain()
                    assert one.listeners.status() == []
                    assert chat(one).closed == {"-N1": 1}
                    await eventually(lambda: running(two, ONE))
                    assert two.logged("listener_taken_over") == []  # handed over, not gone silent
                    await heard.until("chat.sync", 2)
                    assert one.logged("task_died") == one.logged("task_failed") == []


async def test_threads_come_back_after_redis_lost_everything(own_valkey: ValkeyServer) -> None:
    async with a_replica(own_valkey) as one, AsyncExitStack() as stack:
        stack.enter_context(opened(one, ONE))
        await eventually(lambda: running(one, ONE))
        [before] = one.listeners.status()
        await own_valkey.kill()
        stack.enter_context(opened(one, TWO))  # opened while Redis is away
        await own_valkey.restart()

        def told(thread: Thread) -> bool:
            return any(
                row["thread"] == thread and row["fence"] > before["fence"] and row["last_event_at"]
                for row in one.listeners.status()
            )

        await eventually(lambda: told(ONE) and told(TWO))
        assert one.logged("task_failed") == []


async def test_a_lost_lease_is_taken_again(own_valkey: ValkeyServer, heard: Heard) -> None:
    async with a_replica(own_valkey) as one, Redis(host=own_valkey.host, port=own_valkey.port) as client:
        with opened(one, ONE):
            [first] = await heard.until("chat.sync")
            await client.delete(f"callboard:lease:listener:{MESSAGES}:acme:-N1:{{ann}}")
            [_, second] = await heard.until("chat.sync", 2)
            assert second["fence"] > first["fence"]
            assert [line["listener"] for line in one.logged("listener_lost")] == [MESSAGES]

"""Which replica runs whose listeners. That one runs them, whichever it is, is in test_listeners."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from typing import Any

import pytest
from core.replicas import (
    FIRST,
    ITEMS,
    LOUD,
    SECOND,
    THIRD,
    Replica,
    Shop,
    eventually,
    fall_silent,
    hearing,
    lease_owner,
    replica,
)

from callboard.errors import PermissionDenied
from callboard.fleet import attendance, roster
from callboard.fleet.control import Control
from callboard.fleet.rendezvous import preferred, weight
from callboard.fleet.supervisor import Patience
from callboard.messages import Event
from callboard.service import Listener, ListenerSpec, Thread, User, listener
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio

NEVER_S = 3_600.0
LONG_S = 60.0
USERS = [f"u{number}" for number in range(60)]
THREAD = Thread("acme", "-N1", "chats")


async def know_each_other(*replicas: Replica) -> None:
    ids = {one.listeners._members.me.id for one in replicas}
    await eventually(lambda: all({row["id"] for row in one.listeners.members()} == ids for one in replicas))
    await eventually(lambda: all(one.listeners._control._bus.probed_at is not None for one in replicas))


def users_of(one: Replica) -> set[str]:
    """Those whose listeners all run here, and well."""
    return {
        row["uid"]
        for row in one.listeners.status()
        if all(one.listeners.is_active(row["uid"], name) for name in (ITEMS, LOUD))
    }


def fences(one: Replica) -> dict[str, int]:
    return {row["uid"]: row["fence"] for row in one.listeners.status() if row["listener"] == ITEMS}


def mute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nobody tells anybody."""

    async def nothing(*_: Any) -> None: ...

    for name in ("attend", "let_go", "left"):
        monkeypatch.setattr(Control, name, nothing)


async def enter(one: Replica, uids: list[str]) -> None:
    await asyncio.gather(*(one.presence.register(uid, f"{uid}.tab") for uid in uids))


@pytest.mark.parametrize("telling", [True, False])
async def test_a_user_is_run_where_they_should_be_at_once(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, telling: bool
) -> None:
    if not telling:
        mute(monkeypatch)
    async with (
        replica(own_valkey, name="one", id=FIRST, scan_interval_s=NEVER_S) as one,
        replica(own_valkey, name="two", id=SECOND, scan_interval_s=NEVER_S) as two,
        replica(own_valkey, name="three", id=THIRD, scan_interval_s=NEVER_S) as three,
    ):
        await know_each_other(one, two, three)
        await two.presence.register("ann", "tab")
        if not telling:
            await eventually(lambda: not two.listeners._attendance._came)
            await two.listeners._attendance.scan()
            assert users_of(one) == users_of(two) == set()  # it leaves her to the one that knows nothing
            await one.listeners._attendance.scan()  # the scan finds the same
        await eventually(lambda: users_of(one) == {"ann"})
        await three.presence.register("ann", "tab-3")
        assert await three.listeners.owner("ann", "items") == "one"
        assert users_of(two) == users_of(three) == set()


async def test_other_companies_are_told_to_the_replica_that_runs_the_listeners(own_valkey: ValkeyServer) -> None:
    async with (
        replica(own_valkey, id=FIRST, scan_interval_s=NEVER_S, lease_ttl_s=LONG_S) as one,
        replica(own_valkey, id=SECOND, scan_interval_s=NEVER_S) as two,
    ):
        await know_each_other(one, two)
        await two.presence.register("ann", "tab")
        await eventually(lambda: users_of(one) == {"ann"})
        await two.presence.register("ann", "tab", authorized_companies_ids=["a"])
        await eventually(lambda: one.shop.items_source.begun[-1] == User("ann", frozenset(["a"])))


async def test_what_the_right_replica_does_not_take_another_takes_at_its_second_look(own_valkey: ValkeyServer) -> None:
    async with (
        replica(own_valkey, name="one", id=FIRST, scan_interval_s=NEVER_S) as one,
        replica(own_valkey, name="two", id=SECOND, scan_interval_s=NEVER_S) as two,
    ):
        await know_each_other(one, two)
        one.listeners._roster.close()  # it lives, and takes nothing
        await two.presence.register("ann", "tab")
        await eventually(lambda: one.listeners._attendance._told == set())
        await two.listeners._attendance.scan()
        assert await lease_owner(own_valkey, ITEMS, "ann") is None
        await two.listeners._attendance.scan()
        await eventually(lambda: users_of(two) == {"ann"})

        # It is kept for a minute, though the right one lives …
        async with replica(own_valkey, name="three", id=THIRD, scan_interval_s=NEVER_S) as three:
            await know_each_other(one, two, three)
            await eventually(lambda: not two.listeners._members.changed.is_set())
            await two.listeners._attendance.hand_over()
            assert users_of(two) == {"ann"}
        # … unless that is another by then.
        better = next(f"r{number}" for number in count() if weight("ann", f"r{number}") > weight("ann", FIRST))
        async with replica(own_valkey, name="four", id=better, scan_interval_s=NEVER_S) as four:
            await eventually(lambda: users_of(four) == {"ann"})
        assert len(two.shop.items_source.begun) == 1


@pytest.mark.parametrize("expired", [True, False])
async def test_what_fails_on_the_right_replica_stays_away_from_it_and_what_was_late_goes_back(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, expired: bool
) -> None:
    monkeypatch.setattr(roster, "KEPT_S", 0.0)
    patience = Patience(backoff_min_s=NEVER_S, backoff_max_s=NEVER_S)
    async with (
        replica(own_valkey, name="one", id=FIRST, scan_interval_s=NEVER_S, patience=patience) as one,
        replica(own_valkey, name="two", id=SECOND, scan_interval_s=NEVER_S) as two,
    ):
        await know_each_other(one, two)
        if expired:
            await one.presence.register("ann", "tab")
            await eventually(lambda: users_of(one) == {"ann"} and one.shop.items_source.feeds)
            one.shop.items_source.push("ann", PermissionDenied())  # it waits, and lets its lease run out
            await eventually(lambda: one.logged("listener_error"))
            async with asyncio.timeout(20):
                while not two.listeners.is_active("ann", ITEMS):
                    await two.listeners._attendance.scan()
        else:
            one.listeners._roster._closed = True  # it takes nothing, for now
            await two.presence.register("ann", "tab")
            await eventually(lambda: not one.listeners._attendance._told)
            for _ in range(2):
                await two.listeners._attendance.scan()
            assert two.listeners.is_active("ann", ITEMS)
            one.listeners._roster._closed = False
        two.listeners._members.changed.set()
        await eventually(lambda: not two.listeners._members.changed.is_set())
        if expired:
            await two.listeners._attendance.hand_over()
            assert two.listeners.is_active("ann", ITEMS)
            assert one.listeners.is_active("ann", LOUD)
        else:
            await eventually(lambda: users_of(one) == {"ann"})
            assert users_of(two) == set()


async def test_one_that_joins_gets_its_share_and_moves_nobody_else(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    monkeypatch.setattr(attendance, "_HANDED_OVER_A_TURN", 10)
    ids = [FIRST, SECOND, THIRD]
    share = {each: {uid for uid in USERS if preferred(uid, ids) == each} for each in ids}
    old_share = {each: {uid for uid in USERS if preferred(uid, ids[:2]) == each} for each in ids[:2]}
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(replica(own_valkey, id=each, scan_interval_s=NEVER_S, lease_ttl_s=LONG_S))
            for each in ids[:2]
        ]
        await know_each_other(one, two)
        await enter(one, USERS)
        await eventually(lambda: users_of(one) == old_share[FIRST] and users_of(two) == old_share[SECOND])
        before = fences(one) | fences(two)
        stop = one.listeners._roster.stop

        def counting(instances: Any) -> None:
            instances = list(instances)
            turns.append(len(instances))
            stop(instances)

        monkeypatch.setattr(one.listeners._roster, "stop", counting)
        async with hearing(own_valkey, f"user:{min(share[THIRD])}") as heard:
            three = await stack.enter_async_context(
                replica(own_valkey, id=THIRD, scan_interval_s=NEVER_S, lease_ttl_s=LONG_S)
            )
            await eventually(lambda: users_of(three) == share[THIRD])
            await heard.until("notif.sync")
        assert (users_of(one), users_of(two)) == (share[FIRST], share[SECOND])
        after = fences(one) | fences(two) | fences(three)
        assert {uid for uid in USERS if after[uid] != before[uid]} == share[THIRD]
        assert all(after[uid] > before[uid] for uid in share[THIRD])
        assert max(turns) == 10
        assert sum(turns) == 2 * len(old_share[FIRST] - share[FIRST])
        for each in (one, two, three):
            assert each.logged("listener_taken_over") == each.logged("listener_lost") == []


@pytest.mark.parametrize("telling", [True, False])
async def test_one_that_drains_moves_its_own_at_once(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, telling: bool
) -> None:
    ids = [FIRST, SECOND, THIRD]
    share = {each: {uid for uid in USERS if preferred(uid, ids) == each} for each in ids}
    then = {each: {uid for uid in USERS if preferred(uid, ids[1:]) == each} for each in ids[1:]}
    async with AsyncExitStack() as stack:
        one, two, three = [
            await stack.enter_async_context(replica(own_valkey, id=each, scan_interval_s=NEVER_S, lease_ttl_s=LONG_S))
            for each in ids
        ]
        await know_each_other(one, two, three)
        await enter(three, USERS)
        await eventually(lambda: users_of(one) == share[FIRST])
        await eventually(lambda: users_of(two) == share[SECOND] and users_of(three) == share[THIRD])
        before = fences(two) | fences(three)
        if not telling:
            mute(monkeypatch)
        await one.listeners.drain()
        if not telling:
            await eventually(lambda: len(two.listeners.members()) == len(three.listeners.members()) == 2)
            assert users_of(two) | users_of(three) == share[SECOND] | share[THIRD]
            for each in (two, three):
                await each.listeners._attendance.scan()
        await eventually(lambda: users_of(two) == then[SECOND] and users_of(three) == then[THIRD])
        after = fences(two) | fences(three)
        assert {uid for uid in before if after[uid] != before[uid]} == set()
        assert two.logged("listener_taken_over") == three.logged("listener_taken_over") == []


async def test_one_that_dies_is_followed_by_those_that_should(own_valkey: ValkeyServer) -> None:
    ids = [FIRST, SECOND, THIRD]
    then = {each: {uid for uid in USERS if preferred(uid, ids[1:]) == each} for each in ids[1:]}
    async with AsyncExitStack() as stack:
        # Two scans are the time that who should take them has: enough on a busy machine too.
        one, two, three = [
            await stack.enter_async_context(replica(own_valkey, id=each, scan_interval_s=1.5)) for each in ids
        ]
        await know_each_other(one, two, three)
        await enter(one, USERS)
        await eventually(lambda: len(users_of(one)) + len(users_of(two)) + len(users_of(three)) == len(USERS))
        fall_silent(one)
        await eventually(lambda: users_of(two) == then[SECOND] and users_of(three) == then[THIRD])
        assert two.logged("listener_taken_over")


async def test_a_replica_is_asked_for_no_listener_that_it_does_not_declare(own_valkey: ValkeyServer) -> None:
    class Older(Shop):
        def listeners(self) -> list[ListenerSpec]:
            return [spec for spec in super().listeners() if spec.name == "items"]

    async with (
        replica(own_valkey, name="one", id=FIRST, service=Older(), scan_interval_s=NEVER_S) as one,
        replica(own_valkey, name="two", id=SECOND, scan_interval_s=NEVER_S) as two,
    ):
        await know_each_other(one, two)
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.is_active("ann", ITEMS) and two.listeners.is_active("ann", LOUD))
        assert not two.listeners.is_active("ann", ITEMS)


async def test_who_comes_back_while_the_listeners_stop_gets_them_again(own_valkey: ValkeyServer) -> None:
    class Slow(Shop):
        closing, may_close = asyncio.Event(), asyncio.Event()

        @listener
        class Items(Listener["Slow"]):
            async def snapshot(self, user: User) -> list[Event]:
                return []

            async def changes(self, user: User) -> Any:
                self.service.items_source.begun.append(user)
                try:
                    await asyncio.Event().wait()
                    yield
                finally:
                    self.service.closing.set()
                    await self.service.may_close.wait()

    shop = Slow()
    async with replica(own_valkey, service=shop, grace_s=0.0, scan_interval_s=NEVER_S) as one:
        await one.presence.register("ann", "tab")
        await eventually(lambda: users_of(one) == {"ann"})
        await one.presence.unregister("tab")
        await shop.closing.wait()
        await one.presence.register("ann", "tab-2")
        await eventually(lambda: not one.listeners._attendance._came and not one.listeners._attendance._told)
        shop.may_close.set()
        await eventually(lambda: users_of(one) == {"ann"} and len(shop.items_source.begun) == 2)


class Chat(Shop):
    @listener(per="thread")
    class Messages(Listener["Chat"]):
        async def snapshot(self, user: User) -> list[Event]:
            return [Event(type="chat.sync", uid=user.uid, payload={"thread_key": self.thread.thread_key})]

        async def changes(self, user: User) -> Any:
            await asyncio.Event().wait()
            yield


@pytest.mark.parametrize("telling", [True, False])
@pytest.mark.parametrize("how", ["closed", "drained"])
async def test_a_thread_goes_to_another_that_has_it_open_at_once(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, how: str, telling: bool
) -> None:
    if not telling:
        mute(monkeypatch)
    async with AsyncExitStack() as stack:
        one, two, three = [
            await stack.enter_async_context(replica(own_valkey, service=Chat(), grace_s=0.0, scan_interval_s=NEVER_S))
            for _ in range(3)
        ]
        await know_each_other(one, two, three)
        sockets = stack.enter_context(ExitStack())
        sockets.enter_context(two.listeners.keeping_open("ann", THREAD))
        await eventually(lambda: two.listeners.is_active("ann", "messages"))
        stack.enter_context(one.listeners.keeping_open("ann", THREAD))
        await eventually(lambda: not one.listeners._threads._stirred)
        await one.listeners._attendance._attend_threads(["ann"])  # refused
        await eventually(lambda: not one.listeners._roster._takes)
        assert not one.listeners.is_active("ann", "messages")
        if how == "closed":
            sockets.close()
            await two.listeners._attendance.check()
        else:
            await two.listeners.drain()
        if not telling:
            await eventually(lambda: not two.listeners._roster._tasks())  # ended, and released
            assert not one.listeners.is_active("ann", "messages")
            await one.listeners._attendance.scan()
        await eventually(lambda: one.listeners.is_active("ann", "messages"))
        assert not two.listeners.status()
        assert not three.listeners.status()

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from support import PLAIN, MakeSettings, settings_on

from callboard.connections import Connections
from callboard.errors import AlreadyExists, InvalidArgs, Unavailable
from callboard.fleet import presence_lua as lua
from callboard.fleet import scripts
from callboard.fleet.presence import MAX_SESSIONS, Presence
from callboard.fleet.presence_lua import ONLINE_EXPIRY, ONLINE_NAMES, UserKeys, session_key
from callboard.service import User
from callboard.settings import Settings
from callboard.telemetry import Telemetry
from callboard_local import Deployment, ValkeyServer

pytestmark = pytest.mark.anyio

INDEX = (ONLINE_EXPIRY, ONLINE_NAMES)


@pytest.fixture
def redis_server(redis_deployment: Deployment) -> Deployment:
    return redis_deployment


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(replica="test", stream=io.StringIO())


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
async def connections(settings: Settings, telemetry: Telemetry) -> AsyncIterator[Connections]:
    async with Connections(settings, telemetry) as connections:
        yield connections


@pytest.fixture
async def presence(settings: Settings, connections: Connections, telemetry: Telemetry) -> AsyncIterator[Presence]:
    async with Presence(settings, connections, telemetry) as presence:
        yield presence


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


class Seen:
    """A watcher that keeps what it is told."""

    def __init__(self, presence: Presence) -> None:
        self.transitions: list[tuple[str, bool]] = []
        self._changed = asyncio.Condition()
        presence.watch(self)

    async def __call__(self, uid: str, online: bool) -> None:
        async with self._changed:
            self.transitions.append((uid, online))
            self._changed.notify_all()

    async def until(self, done: Callable[[list[tuple[str, bool]]], bool]) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: done(self.transitions))


async def expire(admin: Redis, uid: str) -> None:
    """As if the TTL of all of the user's sessions had just passed."""
    past = 1
    sessions: Any = await admin.zrange(UserKeys.of(uid).sessions, 0, -1)
    await admin.zadd(UserKeys.of(uid).sessions, dict.fromkeys(sessions, past))
    await admin.zadd(ONLINE_EXPIRY, {uid: past})


async def test_a_user_is_online_while_any_session_lives(presence: Presence) -> None:
    assert await presence.register("ann", "tab-1", backend_route="http://one")
    assert not await presence.register("ann", "tab-2")

    assert await presence.unregister("tab-1") == "ann"
    user = await presence.get_user("ann")
    assert user is not None
    assert (user.status, user.sessions, user.ttl_seconds) == ("online", 1, 90)
    assert [session.session_id for session in await presence.list_sessions("ann")] == ["tab-2"]

    assert await presence.unregister("tab-2") == "ann"
    user = await presence.get_user("ann")
    assert user is not None
    assert (user.status, user.sessions) == ("offline", 0)
    assert await presence.unregister("tab-2") is None
    assert await presence.get_user("nobody") is None


async def test_sessions_tell_their_route_and_times(presence: Presence) -> None:
    await presence.register("ann", "tab", backend_route="http://one")
    await presence.register("ann", "tab")  # renewed: the route stays

    [session] = await presence.list_sessions("ann")
    assert (session.uid, session.backend_route) == ("ann", "http://one")
    assert session.registered_at < session.expires_at
    assert session.registered_at.endswith("Z")
    user = await presence.get_user("ann")
    assert user is not None
    assert user.heartbeat_at is not None
    assert user.heartbeat_at >= session.registered_at


async def test_heartbeat_extends_a_session(presence: Presence, admin: Redis) -> None:
    await presence.register("ann", "tab")
    short = 20_000
    await admin.pexpire(session_key("tab"), short)
    before = (await presence.list_sessions("ann"))[0].expires_at

    async def later() -> bool:
        assert await presence.heartbeat("tab")
        return (await presence.list_sessions("ann"))[0].expires_at > before

    async with asyncio.timeout(5):
        while not await later():
            pass
    assert await admin.pttl(session_key("tab")) > short


async def test_heartbeat_does_not_revive_a_session_that_is_over(presence: Presence, admin: Redis) -> None:
    await presence.register("ann", "tab")
    assert await presence.heartbeat("tab")
    await expire(admin, "ann")

    assert not await presence.heartbeat("tab")
    user = await presence.get_user("ann")
    assert user is not None
    assert user.status == "offline"
    assert not await presence.heartbeat("never-registered")


async def test_heartbeat_many_keeps_the_living_and_names_the_rest(presence: Presence, admin: Redis) -> None:
    await presence.register("ann", "a1")
    await presence.register("bob", "b1")
    await presence.register("cid", "c1")
    await expire(admin, "cid")
    scores: Any = await admin.zmscore(ONLINE_EXPIRY, ["ann", "bob", "cid"])

    async with asyncio.timeout(5):
        while True:
            assert await presence.heartbeat_many(["a1", "b1", "c1", "unknown", "a1"]) == {"c1", "unknown"}
            after: Any = await admin.zmscore(ONLINE_EXPIRY, ["ann", "bob", "cid"])
            if after[0] > scores[0] and after[1] > scores[1]:
                break
    assert after[2] in (None, scores[2])
    assert await presence.heartbeat_many([]) == set()


@PLAIN
async def test_heartbeat_many_takes_its_round_trips_once_for_all(presence: Presence, admin: Redis) -> None:
    """The server counts what it reads from its clients: a pipeline arrives in chunks of at least some kilobytes."""
    sessions = [f"tab-{number}" for number in range(100)]
    for session in sessions:
        await presence.register("ann", session)

    async def reads(beat: Awaitable[object]) -> int:
        before = await admin.info("stats")
        await beat
        after = await admin.info("stats")
        return int(after["total_reads_processed"] - before["total_reads_processed"])

    async def one_by_one() -> None:
        for session in sessions:
            await presence.heartbeat(session)

    assert await reads(presence.heartbeat_many(sessions)) < len(sessions)
    assert await reads(one_by_one()) >= 3 * len(sessions)


async def test_a_session_id_moves_to_the_user_who_registers_it(presence: Presence) -> None:
    seen = Seen(presence)
    await presence.register("ann", "shared")
    assert await presence.register("bob", "shared")

    await seen.until(lambda told: len(told) == 3)
    assert seen.transitions == [("ann", True), ("bob", True), ("ann", False)]
    assert await presence.list_sessions("ann") == []
    assert await presence.unregister("shared") == "bob"


async def test_a_session_that_must_not_be_moved_stays_where_it_is(presence: Presence) -> None:
    assert await presence.register("ann", "tab", move=False)
    with pytest.raises(AlreadyExists):
        await presence.register("bob", "tab", move=False)
    assert await presence.owner_of("tab") == "ann"
    assert [session.session_id for session in await presence.list_sessions("ann")] == ["tab"]
    assert (await presence.online_users()).users == ["ann"]
    assert await presence.unregister("tab", uid="bob") is None
    assert await presence.keep_alive([("ann", "tab"), ("bob", "tab"), ("ann", "gone")]) == {
        ("bob", "tab"),
        ("ann", "gone"),
    }
    assert not await presence.register("ann", "tab", move=False)
    assert await presence.unregister("tab", uid="ann") == "ann"
    assert await presence.owner_of("tab") is None


async def test_a_session_is_ended_by_its_latest_holder_alone(presence: Presence) -> None:
    await presence.register("ann", "tab", holder="old")
    await presence.register("ann", "tab", holder="new")
    assert await presence.unregister("tab", uid="ann", holder="old") is None
    assert [each.session_id for each in await presence.list_sessions("ann")] == ["tab"]
    assert await presence.owner_of("tab") == "ann"
    assert await presence.unregister("tab", uid="ann", holder="new") == "ann"
    await presence.register("ann", "tab", holder="new")
    assert await presence.unregister("tab") == "ann"  # as a back end does
    assert await presence.list_sessions("ann") == []


async def test_companies_are_replaced_kept_and_remembered(presence: Presence) -> None:
    seen = Seen(presence)
    await presence.register("ann", "one")
    assert await presence.user("ann") == User("ann", None)

    await presence.register("ann", "one", authorized_companies_ids=["b", "a"])
    assert await presence.user("ann") == User("ann", frozenset({"a", "b"}))
    await presence.register("ann", "two")  # None: as before
    assert await presence.user("ann") == User("ann", frozenset({"a", "b"}))
    await presence.register("ann", "two", authorized_companies_ids=[])
    assert await presence.user("ann") == User("ann", frozenset())
    user = await presence.get_user("ann")
    assert user is not None
    assert user.authorized_companies_ids == []

    await presence.unregister("one")
    await presence.unregister("two")
    await presence.register("ann", "three")  # a return must not widen what the user sees
    assert await presence.user("ann") == User("ann", frozenset())

    await seen.until(lambda told: len(told) == 5)
    assert seen.transitions == [("ann", True), ("ann", True), ("ann", True), ("ann", False), ("ann", True)]


async def test_online_users_come_in_pages_of_a_stable_order(presence: Presence, admin: Redis) -> None:
    names = [f"user-{number}" for number in range(7)]
    for name in reversed(names):
        await presence.register(name, f"tab-{name}")
    await expire(admin, "user-4")  # over, not swept yet

    pages = []
    cursor = None
    while True:
        page = await presence.online_users(cursor, limit=3)
        pages.append(page.users)
        await presence.heartbeat("tab-user-0")  # scores move, the order does not
        if (cursor := page.cursor) is None:
            break
    assert pages == [["user-0", "user-1", "user-2"], ["user-3", "user-5"], ["user-6"]]
    with pytest.raises(InvalidArgs):
        await presence.online_users(limit=0)


async def test_online_among_tells_the_online_with_what_they_may_see(presence: Presence) -> None:
    await presence.register("ann", "a", authorized_companies_ids=["x"])
    await presence.register("bob", "b")
    await presence.unregister("b")

    assert await presence.online_among(["ann", "bob", "nobody"]) == {"ann": User("ann", frozenset({"x"}))}
    assert await presence.online_among([]) == {}


async def test_the_oldest_of_too_many_sessions_is_dropped(presence: Presence, admin: Redis) -> None:
    for number in range(MAX_SESSIONS):
        await presence.register("ann", f"s{number}")
    await admin.zadd(UserKeys.of("ann").sessions, {"s50": 2**43})  # far from over, but …
    await admin.zincrby(UserKeys.of("ann").sessions, -1_000, "s7")  # … this one is the most silent

    await presence.register("ann", "one-more")

    left = {session.session_id for session in await presence.list_sessions("ann")}
    assert len(left) == MAX_SESSIONS
    assert "s7" not in left
    assert not await presence.heartbeat("s7")


@pytest.mark.parametrize("bad", ["", "a b", "{x}", "x" * 129, "a:b", "a\n"])
async def test_ids_are_checked(presence: Presence, bad: str) -> None:
    with pytest.raises(InvalidArgs):
        await presence.register(bad, "s")
    with pytest.raises(InvalidArgs):
        await presence.register("u", bad)
    with pytest.raises(InvalidArgs):
        await presence.unregister(bad)
    with pytest.raises(InvalidArgs):
        await presence.heartbeat(bad)
    with pytest.raises(InvalidArgs):
        await presence.get_user(bad)
    with pytest.raises(InvalidArgs):
        await presence.heartbeat_many([bad])
    with pytest.raises(InvalidArgs):
        await presence.register("u", "s", authorized_companies_ids=[""])


async def test_a_ttl_that_passes_ends_the_user(
    settings: Settings, connections: Connections, telemetry: Telemetry, admin: Redis
) -> None:
    async with Presence(settings, connections, telemetry, ttl_s=0.2, sweep_interval_s=0.05) as presence:
        seen = Seen(presence)
        await presence.register("ann", "tab")
        await seen.until(lambda told: told == [("ann", True), ("ann", False)])

        assert (await presence.online_users()).users == []
        assert not await presence.heartbeat("tab")
        keys = {key async for key in admin.scan_iter("callboard:*")}
        assert keys <= {UserKeys.of("ann").record.encode(), session_key("tab").encode()}
        assert await admin.ttl(UserKeys.of("ann").record) > 0


async def test_one_of_many_sweepers_reports_a_transition(
    settings: Settings, connections: Connections, telemetry: Telemetry, admin: Redis
) -> None:
    users = {f"user-{number}" for number in range(450)}  # more than two batches
    replicas = [Presence(settings, connections, telemetry, sweep_interval_s=3_600) for _ in range(3)]
    for uid in users:
        await replicas[0].register(uid, f"tab-{uid}")
        await expire(admin, uid)
    async with replicas[0], replicas[1], replicas[2]:
        seen = [Seen(replica) for replica in replicas]
        await asyncio.gather(*(replica.sweep() for replica in replicas))
        await eventually(lambda: sum(len(one.transitions) for one in seen) >= len(users))
    told = [uid for one in seen for uid, online in one.transitions if not online]
    assert sorted(told) == sorted(users)
    assert await admin.zcard(ONLINE_EXPIRY) == await admin.zcard(ONLINE_NAMES) == 0


async def test_the_sweep_leaves_the_living_alone_and_counts_them(presence: Presence, telemetry: Telemetry) -> None:
    await presence.register("ann", "a")
    await presence.register("bob", "b")
    await presence.unregister("b")
    assert await presence.sweep()

    assert telemetry.metrics.registry.get_sample_value("callboard_presence_users") == 1
    assert await presence.heartbeat("a")


async def test_the_sweep_mends_an_index_that_lags_behind(presence: Presence, admin: Redis) -> None:
    """A user with one session over and one alive, whose index entry was lost between two steps, stays online."""
    await presence.register("ann", "tab")
    await admin.zadd(ONLINE_EXPIRY, {"ann": 1})

    await presence.sweep()

    assert (await presence.online_users()).users == ["ann"]


async def test_a_crash_between_the_steps_of_register_heals(presence: Presence, admin: Redis) -> None:
    """Indexed, then dead before the session began: the entry goes when its time is over, and nobody is told."""
    seen = Seen(presence)
    await admin.eval(lua.INDEX_ADD, 2, *INDEX, "ghost", 1)
    async with asyncio.timeout(5):
        while await admin.zcard(ONLINE_NAMES):
            await presence.sweep()
    await presence.register("marker", "m")
    await seen.until(bool)
    assert seen.transitions == [("marker", True)]


@pytest.mark.parametrize("late", ["a heartbeat", "a register", "a sweep"])
async def test_who_left_meanwhile_is_not_put_into_the_index_again(
    presence: Presence, admin: Redis, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Another replica ends the user's session between the step that finds it alive and the one that says so."""
    await presence.register("ann", "tab-1")
    left = asyncio.Event()
    run, run_all = presence._run, presence._run_all

    async def leave() -> None:
        if not left.is_set():
            left.set()
            assert await presence.unregister("tab-1") == "ann"
            assert await admin.zrange(ONLINE_NAMES, 0, -1) == []

    async def run_then_leave(script: str, keys: Sequence[str], *args: str | int) -> Any:
        answer = await run(script, keys, *args)
        if script == lua.ENTER:
            await leave()
        return answer

    async def run_all_then_leave(script: str, calls: Sequence[scripts.Call]) -> list[Any]:
        answers = await run_all(script, calls)
        if script in (lua.TOUCH, lua.PURGE):
            await leave()
        return answers

    monkeypatch.setattr(presence, "_run", run_then_leave)
    monkeypatch.setattr(presence, "_run_all", run_all_then_leave)
    if late == "a heartbeat":
        assert await presence.heartbeat("tab-1")
    elif late == "a register":
        await presence.register("ann", "tab-1")
    else:
        await admin.zadd(ONLINE_EXPIRY, {"ann": 1})
        await presence.sweep()
    assert left.is_set()
    assert [await admin.zrange(key, 0, -1) for key in INDEX] == [[], []]
    assert (await presence.online_users()).users == []


async def test_a_heartbeat_mends_an_index_that_redis_lost(presence: Presence, admin: Redis) -> None:
    await presence.register("ann", "tab-1")
    await admin.delete(ONLINE_EXPIRY)
    await admin.delete(ONLINE_NAMES)
    assert await presence.heartbeat("tab-1")
    assert (await presence.online_users()).users == ["ann"]


async def test_removing_from_the_index_does_not_lose_who_came_back(presence: Presence, admin: Redis) -> None:
    """The user re-registers after their last session ended and before that took them out of the index."""
    await presence.register("ann", "old")
    await admin.eval(lua.LEAVE, 2, *UserKeys.of("ann"), "old")
    await presence.register("ann", "new")
    await presence._unindex("ann")

    assert (await presence.online_users()).users == ["ann"]


async def test_a_callback_that_fails_is_logged_and_stops_nobody(settings: Settings, connections: Connections) -> None:
    stream = io.StringIO()
    async with Presence(settings, connections, Telemetry(replica="test", stream=stream)) as presence:

        async def broken(uid: str, online: bool) -> None:
            raise ValueError(f"secret of {uid}")

        presence.watch(broken)
        seen = Seen(presence)
        await presence.register("ann", "a")
        await presence.register("bob", "b")
        await seen.until(lambda told: len(told) == 2)
        await eventually(lambda: stream.getvalue().count("task_failed") == 2)
    assert "ann" not in stream.getvalue()  # neither the id nor the exception's text
    assert {json.loads(line)["error"] for line in stream.getvalue().splitlines()} == {"ValueError"}


async def test_a_slow_callback_does_not_hold_up_the_others_and_catches_up(presence: Presence) -> None:
    entered, free = asyncio.Event(), asyncio.Event()
    told: list[tuple[str, bool]] = []

    async def slow(uid: str, online: bool) -> None:
        told.append((uid, online))
        entered.set()
        await free.wait()

    presence.watch(slow)
    seen = Seen(presence)
    await presence.register("ann", "a")
    await entered.wait()
    for _ in range(3):
        await presence.register("bob", "b")
        await presence.unregister("b")
    await seen.until(lambda all_told: len(all_told) == 7)
    free.set()
    await eventually(lambda: len(told) == 2)
    assert told == [("ann", True), ("bob", False)]


async def test_without_redis_every_call_is_unavailable_and_the_sweeper_survives(
    own_valkey: ValkeyServer, telemetry: Telemetry
) -> None:
    settings = settings_on(own_valkey)
    async with (
        Connections(settings, telemetry) as connections,
        Presence(settings, connections, telemetry, sweep_interval_s=0.01) as presence,
    ):
        await presence.register("ann", "tab")  # the negative control: it works with Redis
        await own_valkey.kill()
        for call in (
            presence.register("ann", "tab"),
            presence.unregister("tab"),
            presence.heartbeat("tab"),
            presence.get_user("ann"),
            presence.online_users(),
            presence.user("ann"),
        ):
            with pytest.raises(Unavailable):
                await call
        await own_valkey.restart()
        seen = Seen(presence)
        async with asyncio.timeout(20):
            while True:
                try:
                    assert not await presence.heartbeat("tab")  # a server that forgot: register again
                    assert await presence.register(f"u{uuid.uuid4().hex}", "tab")
                    break
                except Unavailable:
                    await asyncio.sleep(0.01)
        await seen.until(bool)

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from core.replicas import (
    FIRST,
    ITEMS,
    LEASE_TTL_S,
    LOUD,
    SECOND,
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
from support import PLAIN

from callboard.context import Context, current_context
from callboard.errors import InvalidArgs, PermissionDenied, Unavailable
from callboard.fleet import listeners, roster
from callboard.fleet.roster import Roster
from callboard.fleet.supervisor import Patience
from callboard.messages import Event
from callboard.service import ListenerSpec, Service, User, listener
from callboard_local import Deployment, ValkeyServer
from callboard_local.proxy import FaultProxy

pytestmark = pytest.mark.anyio


@pytest.fixture
async def heard(redis_deployment: Deployment) -> AsyncIterator[Heard]:
    async with hearing(redis_deployment, "user:ann") as heard:
        yield heard


async def test_an_online_user_gets_a_sync_and_then_the_changes(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment) as one:
        await one.presence.register("ann", "tab")
        [sync] = await heard.until("notif.sync")
        await eventually(lambda: one.listeners.is_active("ann", "items") and one.shop.items_source.feeds)
        one.shop.items_source.delta("ann")
        [delta] = await heard.until("notif.add")

        assert sync["fence"] == delta["fence"] > 0
        assert sync["listener"] == delta["listener"] == ITEMS
        assert sync["as_of"] <= sync["timestamp"]
        assert "as_of" not in delta
        await heard.until("loud.sync")
        assert one.shop.loud_source.read == []  # it begins with its own sync
        assert len(one.shop.items_source.read) == 1

        assert {line["listener"] for line in one.logged("listener_start")} == {ITEMS, LOUD}
        await eventually(lambda: len(one.logged("listener_attached")) == 2)
        assert one.metric("callboard_listeners_active") == 1
        assert 0 <= one.metric("callboard_listener_last_event_age_seconds") < 60
        status = {entry["listener"]: entry for entry in one.listeners.status()}
        assert status[ITEMS]["state"] == "listening"
        assert status[ITEMS]["uid"] == "ann"
        assert status[ITEMS]["fence"] == sync["fence"]
        assert one.listeners.names() == [ITEMS, LOUD]
        assert one.listeners.active_count() == 2
        assert "doc_id" not in one.stream.getvalue()


async def test_of_two_replicas_exactly_one_runs_a_listener(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment) as one, replica(redis_deployment) as two:
        await eventually(lambda: len(one.listeners.members()) == len(two.listeners.members()) == 2)
        for number in range(5):
            await (one if number % 2 else two).presence.register(f"user-{number}", f"tab-{number}")
        await one.presence.register("ann", "tab-a")
        await two.presence.register("ann", "tab-b")
        await eventually(lambda: one.listeners.active_count() + two.listeners.active_count() == 12)

        until = time.monotonic() + 2 * LEASE_TTL_S
        await eventually(lambda: min_renewed(one) > until and min_renewed(two) > until)
        assert one.listeners.active_count() + two.listeners.active_count() == 12
        one.shop.items_source.delta("ann")
        two.shop.items_source.delta("ann")
        await heard.until("notif.add")
        assert len(heard.of("notif.sync")) == len(heard.of("notif.add")) == 1
        assert one.logged("listener_lost") == two.logged("listener_lost") == []


async def test_every_replica_knows_which_one_runs_a_listener(own_valkey: ValkeyServer) -> None:
    class Other(Shop):
        def listeners(self) -> list[ListenerSpec]:
            return []

    async with (
        replica(own_valkey, name="host:one", lease_ttl_s=3_600) as one,
        replica(own_valkey, name="two", service=Other()) as two,  # as one of another release, or with it disabled
    ):
        assert await one.listeners.owner("ann", "items") is None
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.active_count() == 2)
        assert await two.listeners.owner("ann", ITEMS) == "host:one"
        assert not two.listeners.is_active("ann", ITEMS)
        assert await one.listeners.owner("ann", "items") == await one.listeners.owner("ann", ITEMS) == "host:one"
        assert await one.listeners.owner("bob", "items") is None
        assert await one.listeners.owner("ann", "unheard-of") is None
        with pytest.raises(InvalidArgs):
            await one.listeners.owner("a/b", "items")

        async with replica(own_valkey, name="three") as three:
            assert await three.listeners.owner("ann", "items") == "host:one"
            await one.listeners.drain()
            await eventually(lambda: three.listeners.is_active("ann", "items"))
            assert await one.listeners.owner("ann", "items") == await two.listeners.owner("ann", ITEMS) == "three"
        await own_valkey.kill()
        with pytest.raises(Unavailable):
            await two.listeners.owner("ann", ITEMS)


async def test_a_replica_that_goes_silent_is_taken_over_and_is_mute(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment, id=FIRST) as one:
        await one.presence.register("ann", "tab")
        [first] = await heard.until("notif.sync")
        async with replica(redis_deployment, id=SECOND) as two:
            # The negative control: while it renews, nobody takes over.
            began = min_renewed(one)
            await eventually(lambda: min_renewed(one) > began + 2 * LEASE_TTL_S)
            assert two.listeners.active_count() == 0

            fall_silent(one)
            [_, second] = await heard.until("notif.sync", 2)
            await eventually(lambda: two.shop.items_source.feeds)
            assert second["fence"] > first["fence"]
            assert one.shop.items_source.feeds  # it still listens …
            one.shop.items_source.delta("ann", 1)
            two.shop.items_source.delta("ann", 2)
            await heard.until("notif.add")
            await eventually(lambda: any(entry["state"] == "muted" for entry in one.listeners.status()))
            assert [event["payload"]["doc_id"] for event in heard.of("notif.add")] == ["2"]  # … and says nothing
            assert {line["listener"] for line in two.logged("listener_taken_over")} >= {ITEMS}


async def test_a_lost_lease_stops_the_listener(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment) as one, redis_deployment.client() as client:
        await one.presence.register("ann", "tab")
        [first] = await heard.until("notif.sync")
        await client.delete(f"callboard:lease:listener:{ITEMS}:{{ann}}")
        await eventually(lambda: one.logged("listener_lost"))
        [_, second] = await heard.until("notif.sync", 2)  # nobody else wanted it: taken again
        assert second["fence"] > first["fence"]
        assert [line["listener"] for line in one.logged("listener_lost")] == [ITEMS]


@PLAIN
async def test_a_page_reload_does_not_restart_the_listeners(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment, grace_s=3_600) as one:
        await one.presence.register("ann", "tab")
        await heard.until("notif.sync")
        await one.presence.unregister("tab")
        await eventually(lambda: "ann" in one.listeners._attendance._gone_since)
        await one.presence.register("ann", "tab-2")
        await eventually(lambda: "ann" not in one.listeners._attendance._gone_since)
        assert len(one.shop.items_source.begun) == 1
        assert one.shop.items_source.closed == 0


async def test_offline_stops_the_listeners_and_releases_their_leases(
    redis_deployment: Deployment, heard: Heard
) -> None:
    async with replica(redis_deployment, lease_ttl_s=4) as one:
        await one.presence.register("ann", "tab")
        await one.presence.register("bob", "tab-b")
        await heard.until("notif.sync")
        assert await lease_owner(redis_deployment, ITEMS, "ann")

        await one.presence.unregister("tab")
        await eventually(lambda: len(one.listeners._roster._tasks()) == 2)  # two ended, and are released
        assert one.listeners.active_count() == 2
        assert one.shop.items_source.closed == 1
        assert await lease_owner(redis_deployment, ITEMS, "ann") is None
        assert await lease_owner(redis_deployment, ITEMS, "bob")
        assert not one.listeners.is_active("ann", ITEMS)
        assert one.logged("listener_error") == []


async def test_a_user_who_went_online_elsewhere_keeps_their_listeners_here(
    redis_deployment: Deployment, heard: Heard
) -> None:
    async with replica(redis_deployment, id=FIRST) as one:
        await one.presence.register("ann", "tab")
        await heard.until("notif.sync")
        async with replica(redis_deployment, id=SECOND) as two:
            await one.presence.unregister("tab")
            await two.presence.register("ann", "tab-2")
            since = min_renewed(one)
            await eventually(lambda: min_renewed(one) > since + LEASE_TTL_S)  # longer than the grace
            assert one.listeners.is_active("ann", ITEMS)
            assert one.shop.items_source.closed == 0


@PLAIN
async def test_a_failing_listener_restarts_and_the_others_do_not_notice(
    redis_deployment: Deployment, heard: Heard
) -> None:
    async with replica(redis_deployment) as one:
        await one.presence.register("ann", "tab")
        await one.presence.register("bob", "tab-b")
        await eventually(lambda: one.listeners.active_count() == 4 and len(one.shop.items_source.feeds) == 2)
        for count in (1, 2, 3):
            await eventually(lambda: "ann" in dict(one.shop.items_source.feeds))
            one.shop.items_source.push("ann", ValueError("a payload") if count < 3 else None)
            await eventually(lambda: len(one.logged("listener_error")) == count)  # noqa: B023 - awaited in the loop
        await heard.until("notif.sync", 4)  # each restart with a sync

        errors = one.logged("listener_error")
        assert [line["error"].split(" ")[0] for line in errors] == ["ValueError", "ValueError", "StreamEnded"]
        assert {line["code"] for line in errors} == {"INTERNAL"}
        assert "replicas.py:" in errors[0]["frames"][-1]
        assert "a payload" not in one.stream.getvalue()
        assert one.metric("callboard_listener_restarts_total") == 3
        assert [user.uid for user in one.shop.items_source.begun].count("bob") == 1
        assert len(one.shop.loud_source.begun) == 2


@PLAIN
async def test_a_start_that_fails_or_hangs_is_tried_again(redis_deployment: Deployment, heard: Heard) -> None:
    class Slow(Shop):
        attempts = 0

        @listener(begins_with_sync=True)
        class Loud:
            service: Slow

            async def snapshot(self, user: User) -> list[Event]:
                return []

            async def changes(self, user: User) -> AsyncIterator[Event]:
                self.service.attempts += 1
                if self.service.attempts == 1:
                    await asyncio.Event().wait()
                if self.service.attempts == 2:
                    raise asyncio.CancelledError
                yield Event(type="loud.sync", uid=user.uid, payload={})
                await asyncio.Event().wait()

    shop = Slow()
    shop.items_source.snapshot_fails_with = ValueError()
    patience = Patience(attach_s=0.05, backoff_min_s=0.01, backoff_max_s=0.02)
    async with replica(redis_deployment, service=shop, patience=patience) as one:
        await one.presence.register("ann", "tab")
        await heard.until("loud.sync")
        await eventually(lambda: len(one.logged("listener_error")) >= 5)
        shop.items_source.snapshot_fails_with = None
        await heard.until("notif.sync")
        codes = [line["code"] for line in one.logged("listener_error") if line["listener"] == LOUD]
        assert codes == ["DEADLINE_EXCEEDED", "INTERNAL"]
        await eventually(lambda: len(one.logged("listener_attached")) == 2)


async def test_a_source_that_hangs_keeps_no_other_listener_from_its_start(own_valkey: ValkeyServer) -> None:
    class Slow(Shop):
        @listener
        class Calm:
            service: Slow

            async def snapshot(self, user: User) -> list[Event]:
                return [Event(type="calm.sync", uid=user.uid, payload={})]

            def changes(self, user: User) -> AsyncIterator[Event]:
                return self.service.loud_source.changes(user)

    shop = Slow()
    shop.items_source.snapshot_waits = asyncio.Event()
    patience = Patience(starting=defaultdict(lambda: asyncio.Semaphore(2)))
    async with replica(own_valkey, service=shop, patience=patience) as one:
        for uid in ("ann", "bob", "cid"):
            await one.presence.register(uid, f"{uid}.tab")
        await eventually(lambda: sum(one.listeners.active_count(name) for name in ("calm", "items")) == 6)
        await eventually(
            lambda: (
                [row["state"] for row in one.listeners.status() if row["listener"] == "shop.calm"] == ["listening"] * 3
            )
        )
        assert [row["state"] for row in one.listeners.status() if row["listener"] == ITEMS] == ["starting"] * 3
        await eventually(lambda: len(shop.items_source.read) == 2)
        shop.items_source.snapshot_waits.set()
        await eventually(lambda: {row["state"] for row in one.listeners.status()} == {"listening"})


@PLAIN
async def test_a_permanent_error_waits_long_and_lets_the_lease_go(redis_deployment: Deployment, heard: Heard) -> None:
    patience = Patience(backoff_min_s=0.01, backoff_max_s=3_600)
    async with replica(redis_deployment, id=FIRST, patience=patience) as one:
        await one.presence.register("ann", "tab")
        await heard.until("notif.sync")
        await eventually(lambda: one.shop.items_source.feeds)
        one.shop.items_source.push("ann", PermissionDenied("secret"))
        await eventually(lambda: one.logged("listener_error"))
        [error] = one.logged("listener_error")
        assert error["code"] == "PERMISSION_DENIED"
        assert error["retry_in_s"] >= 1_800
        [entry] = [entry for entry in one.listeners.status() if entry["listener"] == ITEMS]
        assert (entry["state"], entry["last_error"]) == ("backing_off", "PERMISSION_DENIED")
        assert not one.listeners.is_active("ann", "items")
        async with replica(redis_deployment, id=SECOND) as two:  # who may fare better
            await eventually(lambda: two.listeners.is_active("ann", "items"))
            assert one.listeners.is_active("ann", "loud")

        await one.listeners.restart("ann", "items")  # asked for, it does not wait
        await eventually(lambda: one.listeners.is_active("ann", "items"))


@pytest.mark.parametrize("failures", [1, 4, 40])
async def test_back_off_is_full_jitter_below_a_bound_that_grows(failures: int) -> None:
    patience = Patience()
    bound = min(30.0, 0.5 * 2 ** (failures - 1))
    delays = [patience.backoff_s(failures, permanent=False) for _ in range(200)]
    assert 0 <= min(delays) < bound / 4
    assert bound / 2 < max(delays) <= bound
    assert all(15 <= patience.backoff_s(failures, permanent=True) <= 30 for _ in range(50))


async def test_redis_killed_while_publishing_makes_a_sync_once_it_is_back(own_valkey: ValkeyServer) -> None:
    async with replica(own_valkey, lease_ttl_s=30, grace_s=3_600) as one:
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.is_active("ann", "items") and one.shop.items_source.feeds)
        [lease] = [
            run.supervisor.lease
            for run in one.listeners._roster.running.values()
            if run.supervisor.declared.name == ITEMS
        ]
        await own_valkey.kill()
        one.shop.items_source.delta("ann", 1)
        await eventually(lambda: any(entry["state"] == "muted" for entry in one.listeners.status()))
        assert one.logged("listener_error")[-1]["code"] == "UNAVAILABLE"
        one.shop.items_source.delta("ann", 2)

        await own_valkey.restart()
        async with hearing(own_valkey, "user:ann") as heard:
            # A restarted server has forgotten its leases: put this one back, as a server with a disk would.
            async with Redis(host=own_valkey.host, port=own_valkey.port) as client:
                fields = {"owner": lease.owner, "expires": 2**45, "fence": lease.fence}
                await client.hset(lease.key, mapping=fields)  # type: ignore[arg-type]
            reads = len(one.shop.items_source.read)
            while not heard.of("notif.sync"):
                await one.listeners._renew()
                await asyncio.sleep(0.02)
            assert len(one.shop.items_source.read) == reads + 1
            one.shop.items_source.delta("ann", 3)
            await heard.until("notif.add")
            assert [event["type"] for event in heard.events] == ["notif.sync", "notif.add"]
            assert heard.events[0]["fence"] == heard.events[1]["fence"] == lease.fence
            assert one.shop.items_source.closed == 0  # the stream went on all the while


def states(one: Replica) -> list[str]:
    return [row["state"] for row in one.listeners.status()]


@pytest.mark.parametrize("asked_again", [True, False])
async def test_one_lost_reply_to_a_publish_mutes_a_listener_for_a_moment(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, asked_again: bool
) -> None:
    if not asked_again:  # the control
        monkeypatch.setattr(Roster, "_renew_soon", lambda *_: None)
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        replica(proxy, lease_ttl_s=3_600, grace_s=3_600) as one,  # its own turn is in 20 minutes
        hearing(own_valkey, "user:ann") as heard,
    ):
        await one.presence.register("ann", "tab")
        await heard.until("notif.sync")
        await eventually(lambda: one.shop.items_source.feeds)
        proxy.drop_reply(b"notif.add")
        one.shop.items_source.delta("ann")
        await eventually(lambda: proxy.dropped == 1 and one.logged("listener_error"))
        if asked_again:
            await heard.until("notif.sync", 2)
            one.shop.items_source.delta("ann", 2)
            await heard.until("notif.add", 2)
        assert ("muted" in states(one)) is not asked_again


async def test_a_redis_that_refuses_events_alone_costs_the_source_one_read_beside_the_turns(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "_AGAIN_S", 0.01)
    async with (
        replica(own_valkey, lease_ttl_s=3_600, grace_s=3_600) as one,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        read = one.shop.items_source.read

        def is_quiet(errors: int) -> bool:
            renewing = one.listeners._roster._renewing
            return len(one.logged("listener_error")) == errors and renewing is not None and renewing.done()

        await one.presence.register("ann", "tab")
        await eventually(lambda: one.shop.items_source.feeds and "starting" not in states(one))
        for turn in (1, 2):
            before = len(read)
            await client.acl_setuser("default", enabled=True, channels=["callboard:*"], reset_channels=True)
            one.shop.items_source.delta("ann")
            await eventually(lambda: is_quiet(errors=3 * turn - 1))  # noqa: B023 - the delta and a sync could not be sent
            assert len(read) == before + 1
            await one.listeners._renew()  # a turn
            await eventually(lambda: is_quiet(errors=3 * turn))  # noqa: B023
            assert len(read) == before + 2
            assert "muted" in states(one)
            await client.acl_setuser("default", enabled=True, channels=["*"])
            await one.listeners._renew()
            await eventually(lambda: states(one) == ["listening"] * 2)


async def test_a_hurried_replica_makes_up_for_an_outage_at_once(own_valkey: ValkeyServer) -> None:
    async with (
        replica(own_valkey, lease_ttl_s=3_600, grace_s=3_600) as one,  # its own turn is in 20 minutes
        hearing(own_valkey, "user:ann") as heard,
    ):
        await one.presence.register("ann", "tab")
        await heard.until("notif.sync")
        await eventually(lambda: one.shop.items_source.feeds)
        own_valkey.pause()
        one.shop.items_source.delta("ann")
        await eventually(lambda: any(entry["state"] == "muted" for entry in one.listeners.status()))
        own_valkey.resume()
        one.listeners.hurry()
        await heard.until("notif.sync", 2)


async def test_a_loop_that_is_hurried_again_and_again_has_a_turn_now_and_then(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []

    async def work() -> None:
        turns.append(time.monotonic())

    async with replica(own_valkey) as one:
        loop = asyncio.create_task(one.listeners._every(3_600, work))
        await asyncio.sleep(0)
        one.listeners.hurry()
        await eventually(lambda: len(turns) == 1)
        one.listeners.hurry()
        await eventually(lambda: len(turns) == 2)
        assert turns[1] - turns[0] > 0.9 * listeners._HURRIED_EVERY_S
        monkeypatch.setattr(listeners, "_HURRIED_EVERY_S", 0)  # the control
        for count in range(3, 7):
            one.listeners.hurry()
            await eventually(lambda: len(turns) == count)  # noqa: B023 - called in this turn
        loop.cancel()
        await asyncio.wait([loop])


async def test_redis_that_lost_everything_gives_a_new_lease_and_a_sync(own_valkey: ValkeyServer) -> None:
    async with replica(own_valkey) as one:
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.active_count() == 2)
        before = {entry["listener"]: entry["fence"] for entry in one.listeners.status()}
        await own_valkey.kill()
        one.shop.items_source.delta("ann", 1)
        await own_valkey.restart()
        async with hearing(own_valkey, "user:ann") as heard:
            async with asyncio.timeout(20):
                while True:
                    try:
                        await one.presence.register("ann", "tab")
                        break
                    except Unavailable:
                        await asyncio.sleep(0.02)
            [sync, *_] = await heard.until("notif.sync")
            assert sync["fence"] > before[ITEMS]
            await eventually(lambda: one.listeners.active_count() == 2)


@PLAIN
async def test_an_event_that_cannot_be_sent_does_not_end_the_stream(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment) as one:
        await one.presence.register("ann", "tab")
        await heard.until("notif.sync")
        await eventually(lambda: one.shop.items_source.feeds)
        one.shop.items_source.push("ann", Event(type="NOT A TYPE", uid="ann", payload={}))
        one.shop.items_source.push("ann", Event(type="notif.add", uid="ann", payload={"no": object()}))
        one.shop.items_source.delta("ann")
        await heard.until("notif.add")
        assert [line["code"] for line in one.logged("listener_error")] == ["INVALID_ARGS", "INTERNAL"]
        assert len(one.shop.items_source.begun) == 1
        assert one.metric("callboard_listener_restarts_total") is not None


async def test_other_companies_restart_the_users_listeners(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment) as one, replica(redis_deployment) as two:
        await eventually(lambda: len(one.listeners.members()) == len(two.listeners.members()) == 2)
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.active_count() + two.listeners.active_count() == 2)
        owner = one if one.listeners.is_active("ann", "items") else two
        other = two if owner is one else one
        for teller, companies in ((owner, ["a"]), (other, ["a", "b"])):  # at once here; on the next tick from elsewhere
            await teller.presence.register("ann", "tab", authorized_companies_ids=companies)
            user = User("ann", frozenset(companies))
            await eventually(lambda: owner.shop.items_source.begun[-1] == user)  # noqa: B023 - awaited in the loop
        await owner.presence.register("ann", "tab", authorized_companies_ids=["b", "a"])  # the same: nothing happens
        assert len(owner.shop.items_source.begun) == 3
        assert owner.logged("listener_error") == []


@PLAIN
async def test_restart_begins_one_or_all_anew(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment) as one:
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.active_count() == 2)
        await heard.until("notif.sync", 1)
        await one.listeners.restart("ann", "items")
        await heard.until("notif.sync", 2)
        assert len(heard.of("loud.sync")) == 1
        await one.listeners.restart("ann")
        await heard.until("notif.sync", 3)
        await heard.until("loud.sync", 2)
        await one.listeners.restart("nobody")
        assert one.logged("listener_error") == []


@PLAIN
async def test_snapshot_survives_a_listener_that_fails(redis_deployment: Deployment) -> None:
    async with replica(redis_deployment) as one:
        await one.presence.register("ann", "tab", authorized_companies_ids=["a"])
        assert {event.type for event in await one.listeners.snapshot("ann")} == {"notif.sync"}
        assert one.shop.loud_source.read[-1] == User("ann", frozenset({"a"}))
        one.shop.loud_source.snapshot_fails_with = ValueError("a payload")
        found = await one.listeners.read("ann")
        assert [event.type for event in found.events] == ["notif.sync"]
        assert found.failed == [LOUD]
        assert all(event.id and event.timestamp and event.as_of for event in found.events)
        assert {line["listener"] for line in one.logged("listener_error")} == {LOUD}
        assert "a payload" not in one.stream.getvalue()


@PLAIN
async def test_a_snapshot_that_hangs_is_cut_off(redis_deployment: Deployment) -> None:
    class Hanging(Shop):
        @listener
        class Items:
            async def snapshot(self, user: User) -> list[Event]:
                await asyncio.Event().wait()
                return []

            def changes(self, user: User) -> AsyncIterator[Event]:
                raise ValueError

    async with replica(redis_deployment, service=Hanging(), patience=Patience(snapshot_s=0.05)) as one:
        found = await one.listeners.read("ann")
        assert [event.type for event in found.events] == ["notif.sync"]
        assert found.failed == [ITEMS]
        assert {line["code"] for line in one.logged("listener_error")} == {"DEADLINE_EXCEEDED"}


async def test_sync_publishes_the_snapshot(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment) as one:
        assert await one.listeners.sync("ann") == (2, [])  # also for a user who is not online here
        await heard.until("notif.sync", 2)


async def test_a_sync_without_redis_is_refused(own_valkey: ValkeyServer) -> None:
    async with replica(own_valkey) as one:
        assert await one.listeners.sync("ann") == (2, [])
        await own_valkey.kill()
        with pytest.raises(Unavailable):
            await one.listeners.sync("ann")


@PLAIN
@pytest.mark.parametrize("asked", ["owner", "other"])
@pytest.mark.parametrize("followed", [True, False])
async def test_a_sync_that_a_delta_has_overtaken_is_followed_by_the_listeners_own(
    redis_deployment: Deployment, heard: Heard, monkeypatch: pytest.MonkeyPatch, asked: str, followed: bool
) -> None:
    if not followed:  # the control

        async def nothing(*args: Any) -> None: ...

        monkeypatch.setattr(Roster, "sync_soon", nothing)
    async with replica(redis_deployment, id=FIRST) as one, replica(redis_deployment, name="two", id=SECOND) as two:
        await one.presence.register("ann", "s1")
        await eventually(lambda: len(one.shop.items_source.feeds) == 1 and one.listeners.is_active("ann", ITEMS))
        answering = one if asked == "owner" else two
        read, overtaken = asyncio.Event(), asyncio.Event()
        snapshot = answering.shop.items_source.snapshot

        async def slow(user: User) -> list[Event]:
            events = await snapshot(user)
            if not read.is_set():
                read.set()
                await overtaken.wait()
            return events

        monkeypatch.setattr(answering.shop.items_source, "snapshot", slow)
        syncing = asyncio.create_task(answering.listeners.sync("ann"))
        await read.wait()
        one.shop.items_source.delta("ann")
        await heard.until("notif.add")
        overtaken.set()
        assert (await syncing).failed == []

        before = time.monotonic()
        await eventually(lambda: min_renewed(one) > before)
        one.shop.items_source.delta("ann", 2)
        await heard.until("notif.add", 2)
        since = [event for event in heard.events if event["listener"] == ITEMS]
        since = since[[event["type"] for event in since].index("notif.add") + 1 :]
        stale, *own, _ = since
        assert (stale["type"], "fence" in stale) == ("notif.sync", False)
        assert [(event["type"], "fence" in event) for event in own] == ([("notif.sync", True)] if followed else [])


@PLAIN
@pytest.mark.parametrize("payload", [{"at": object()}, {"filling": "x" * 300_000}])
async def test_a_sync_that_cannot_be_sent_is_its_listeners_failure_alone(
    redis_deployment: Deployment, heard: Heard, payload: dict[str, Any]
) -> None:
    class Unsendable(Shop):
        @listener
        class Items:
            async def snapshot(self, user: User) -> list[Event]:
                return [Event(type="notif.sync", uid=user.uid, payload=payload)]

            async def changes(self, user: User) -> AsyncIterator[Event]:
                yield Event(type="notif.add", uid=user.uid, payload={})
                await asyncio.Event().wait()

    async with replica(redis_deployment, service=Unsendable()) as one:
        found = await one.listeners.read("ann")
        assert ([event.listener for event in found.events], found.failed) == ([LOUD], [ITEMS])
        assert await one.listeners.sync("ann") == (1, [ITEMS])
        assert [event["listener"] for event in await heard.until("notif.sync")] == [LOUD]
        too_large = one.telemetry.metrics.registry.get_sample_value(
            "callboard_events_dropped_total", {"prefix": "user:", "reason": "too_large"}
        )
        assert too_large == (2 if "filling" in payload else None)

        await one.presence.register("ann", "tab")
        await heard.until("notif.add")
        [status] = [entry for entry in one.listeners.status() if entry["listener"] == ITEMS]
        assert (status["refused"], status["last_error"] is None) == (1, False)
        lines = [line for line in one.logged("listener_error") if "refused" in line]
        assert [(line["level"], line["listener"]) for line in lines] == [("error", ITEMS)]
        assert "xxx" not in one.stream.getvalue()


@PLAIN
async def test_sync_goes_on_when_one_event_cannot_be_published(redis_deployment: Deployment, heard: Heard) -> None:
    class Lost(Shop):
        @listener
        class Items:
            async def snapshot(self, user: User) -> list[Event]:
                return [Event(type="notif.sync", uid="*", payload={})]

            async def changes(self, user: User) -> AsyncIterator[Event]:
                raise ValueError
                yield

    async with replica(redis_deployment, service=Lost()) as one:
        assert await one.listeners.sync("ann") == (1, [ITEMS])
        await heard.until("notif.sync")


async def test_what_a_dead_replica_left_of_a_user_who_is_gone_is_swept(redis_deployment: Deployment) -> None:
    lease = f"callboard:lease:listener:{ITEMS}:{{ann}}"
    async with redis_deployment.client() as client, AsyncExitStack() as stack:
        one = await stack.enter_async_context(replica(redis_deployment))
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.active_count() == 2)
        await client.hset(lease, "owner", "dead:1")  # so that nobody renews or releases it
        await one.presence.unregister("tab")
        await eventually(lambda: not one.listeners.status())
        assert await client.pttl(lease) == -1
        await stack.enter_async_context(replica(redis_deployment, name="two", sweep_interval_s=0.2))
        async with asyncio.timeout(20):
            while await client.pttl(lease) == -1:
                await asyncio.sleep(0.02)
        assert await client.hkeys(lease) == [b"fence"]


async def test_drain_releases_everything_for_the_next_replica(redis_deployment: Deployment, heard: Heard) -> None:
    async with replica(redis_deployment, lease_ttl_s=3_600) as one:
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.active_count() == 2 and one.shop.items_source.feeds)
        async with replica(redis_deployment) as two:
            await one.listeners.drain()
            assert one.listeners.status() == []
            assert one.shop.items_source.closed == 1
            await eventually(lambda: two.listeners.active_count() == 2)
            assert two.logged("listener_taken_over") == []  # handed over, not gone silent
            await one.presence.register("bob", "tab-b")
            await eventually(lambda: two.listeners.active_count() == 4)
            assert one.listeners.active_count() == 0
            await one.listeners.drain()


async def test_drain_ends_although_redis_is_away_and_the_stream_fails_to_close(own_valkey: ValkeyServer) -> None:
    async with replica(own_valkey) as one:
        await one.presence.register("ann", "tab")
        await eventually(lambda: one.listeners.active_count() == 2 and one.shop.items_source.feeds)
        one.shop.items_source.close_fails = True
        await own_valkey.kill()
        await one.listeners.drain()
        assert one.listeners.status() == []
        assert any(line["error"].startswith("OSError") for line in one.logged("listener_error"))
        assert one.logged("task_died") == []


@PLAIN
async def test_a_listener_runs_in_nobodys_context(redis_deployment: Deployment) -> None:
    async with replica(redis_deployment) as one:

        async def publish(event: Event, /, *, specific: tuple[str, ...] = ()) -> None:
            raise AssertionError

        current_context.set(Context(publish, asyncio.get_running_loop(), method="A.call"))
        await one.presence.register("ann", "tab")
        await one.listeners._attendance.scan()
        await eventually(lambda: one.shop.items_source.context_seen)
        assert one.shop.items_source.context_seen == [None]


@PLAIN
async def test_a_service_may_prefix_its_log_events(redis_deployment: Deployment) -> None:
    class Workflow(Shop):
        listener_log_prefix = "workflow_"

    async with replica(redis_deployment, service=Workflow()) as one:
        await one.presence.register("ann", "tab")
        await eventually(lambda: len(one.logged("workflow_listener_attached")) == 2 and one.shop.items_source.feeds)
        one.shop.items_source.push("ann", None)
        await eventually(lambda: one.logged("workflow_listener_error"))
        assert len(one.logged("workflow_listener_start")) >= 2
        for event in ("start", "attached", "error"):
            assert one.logged(f"listener_{event}") == []


@PLAIN
async def test_names_clash_and_are_withdrawn(redis_deployment: Deployment) -> None:
    class Twice(Service):
        namespace = "TWICE"

        @listener(name="same")
        class One(Shop.Items):
            pass

        @listener(name="same")
        class Two(Shop.Items):
            pass

    async with replica(redis_deployment) as one:
        with pytest.raises(TypeError, match="same"):
            one.listeners.declare("TWICE", Twice())
        one.listeners.withdraw("TWICE")
        assert one.listeners.names() == [ITEMS, LOUD]
        assert one.metric("callboard_listeners_active", "twice.same") is math.nan
        assert math.isnan(one.metric("callboard_listener_last_event_age_seconds"))

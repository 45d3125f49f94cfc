from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from support import PLAIN, MakeSettings, Recorded

from callboard.connections import Connections
from callboard.errors import InvalidArgs, Unavailable
from callboard.events.bus import MAX_EVENT_BYTES, Bus
from callboard.messages import Event, new_id
from callboard.settings import Settings
from callboard_local import Deployment, ValkeyServer

pytestmark = pytest.mark.anyio

FAST: dict[str, Any] = {
    "probe_interval_s": 0.05,
    "probe_timeout_s": 2.0,
    "subscribe_timeout_s": 2.0,
    "backoff_s": (0.01, 0.1),
}
NO_PROBE: dict[str, Any] = {**FAST, "probe_interval_s": 3600}


class Replica:
    """A bus, and what came out of it."""

    def __init__(self, bus: Bus, connections: Connections) -> None:
        self.bus = bus
        self.connections = connections
        self.heard: list[tuple[str, bytes]] = []
        self.gaps = 0
        bus.sink = lambda channel, data: self.heard.append((channel, data))
        bus.on_gap = self._gap

    def _gap(self) -> None:
        self.gaps += 1

    def ids(self) -> list[str]:
        return [json.loads(data)["id"] for _, data in self.heard]


@asynccontextmanager
async def replica(
    settings: Settings, recorded: Recorded | None = None, prefixes: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[Replica]:
    telemetry = (recorded or Recorded()).telemetry
    async with Connections(settings, telemetry, attempt_timeout_s=2, call_limit_s=3) as connections:
        bus = Bus(settings, connections, telemetry, prefixes or {}, **(options or FAST))
        made = Replica(bus, connections)
        async with bus:
            yield made


def on(server: ValkeyServer, **fields: Any) -> Settings:
    return Settings(redis_host=server.host, redis_port=server.port, **fields)


def event(uid: str, kind: str = "notif.job_updated", **fields: Any) -> Event:
    return Event(type=kind, uid=uid, payload={"job_id": "1"}, **fields)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def redis_server(redis_deployment: Deployment) -> Deployment:
    return redis_deployment


@pytest.fixture
def uid() -> str:
    return new_id()


@pytest.fixture
async def two(make_settings: MakeSettings) -> AsyncIterator[tuple[Replica, Replica]]:
    async with replica(make_settings()) as one, replica(make_settings()) as other:
        yield one, other


@pytest.fixture
async def one(make_settings: MakeSettings, recorded: Recorded) -> AsyncIterator[Replica]:
    async with replica(make_settings(), recorded, {"vector": "vector:of:"}) as made:
        yield made


# -- from publisher to subscriber -------------------------------------------------------------------------------------


async def test_every_replica_that_subscribed_hears_an_event(two: tuple[Replica, Replica], uid: str) -> None:
    for replica in two:
        await replica.bus.subscribe(f"user:{uid}")
    sent = event(uid)
    await two[0].bus.publish(sent)
    for replica in two:
        await eventually(partial(len, replica.heard))
        [(channel, data)] = replica.heard
        assert channel == f"user:{uid}"
        assert json.loads(data) == {
            "id": sent.id, "type": "notif.job_updated", "uid": uid, "timestamp": sent.timestamp,
            "payload": {"job_id": "1"},
        }  # fmt: skip


async def test_events_of_a_channel_arrive_once_and_in_order(two: tuple[Replica, Replica], uid: str) -> None:
    sender, receiver = two
    await receiver.bus.subscribe(f"user:{uid}")
    ids = [str(number) for number in range(500)]
    for id_ in ids:
        await sender.bus.publish(event(uid, id=id_))
    await eventually(lambda: len(receiver.heard) >= len(ids))
    assert receiver.ids() == ids
    assert (receiver.gaps, sender.gaps) == (0, 0)


async def test_only_exact_channels_are_heard(one: Replica, uid: str) -> None:
    await one.bus.subscribe(f"user:{uid}*")
    await one.bus.subscribe(f"user:{uid}")
    await one.bus.publish(event(uid + "x"))
    await one.bus.publish(event(uid, id="last"))
    await eventually(lambda: one.heard)
    assert one.ids() == ["last"]


async def test_large_and_binary_messages_pass_unchanged(one: Replica, uid: str) -> None:
    await one.bus.subscribe(f"user:{uid}")
    blob = bytes(range(256)) * 4096
    await one.bus.publish_raw(f"user:{uid}", blob)
    await eventually(lambda: one.heard)
    assert one.heard == [(f"user:{uid}", blob)]


# -- publishing -------------------------------------------------------------------------------------------------------


@PLAIN
async def test_an_event_gets_an_id_and_a_timestamp_unless_it_has_them(one: Replica, uid: str) -> None:
    bare, filled = event(uid), event(uid, id="x", timestamp="2025-09-20T11:44:00.000Z")
    await one.bus.publish(bare)
    await one.bus.publish(filled)
    assert bare.id
    assert bare.timestamp.endswith("Z")
    assert (filled.id, filled.timestamp) == ("x", "2025-09-20T11:44:00.000Z")


@PLAIN
@pytest.mark.parametrize("kind", ["", "notif", "notif.", "Notif.x", "notif.x\n", "notif..x", ".x", "notif.X", "user:x"])
async def test_a_type_that_is_none_is_refused(one: Replica, kind: str) -> None:
    with pytest.raises(InvalidArgs):
        await one.bus.publish(event("demo", kind))


@PLAIN
@pytest.mark.parametrize("part", ["", "a:b", "a b", "a\n", "é", "x" * 129])
async def test_a_uid_or_specific_part_that_is_none_is_refused(one: Replica, part: str) -> None:
    with pytest.raises(InvalidArgs):
        await one.bus.publish(event(part))
    with pytest.raises(InvalidArgs):
        await one.bus.publish(event("demo"), specific=("space", part))
    with pytest.raises(InvalidArgs):
        one.bus.channels_of_user(part)


@PLAIN
async def test_an_event_over_the_limit_is_refused_and_one_at_the_limit_is_not(one: Replica) -> None:
    room = MAX_EVENT_BYTES - len(b'{"id":"x","type":"notif.x","uid":"u","timestamp":"t","payload":{"k":""}}')
    fits = Event(type="notif.x", uid="u", id="x", timestamp="t", payload={"k": "v" * room})
    await one.bus.publish(fits)
    fits.payload["k"] += "v"
    with pytest.raises(InvalidArgs):
        await one.bus.publish(fits)


@PLAIN
async def test_the_first_segment_of_the_type_names_the_channel(one: Replica) -> None:
    bus = one.bus
    assert bus.channel_of("notif.sync", "u") == "user:u"
    assert bus.channel_of("own.thing", "u") == "user:u"
    assert bus.channel_of("msg.new", "u") == "msg:u"
    assert bus.channel_of("chat.message", "u", ("space", "thread")) == "chat:u:space:thread"
    assert bus.channel_of("vector.search_complete", "u") == "vector:of:u"
    assert bus.channels_of_user("u") == ["user:u", "msg:u", "vector:of:u"]


async def test_direct_messages_also_go_to_the_users_channel_when_told(make_settings: MakeSettings, uid: str) -> None:
    async with replica(make_settings(LISTENERS_MSG_ON_USER_CHANNEL="true")) as one:
        await one.bus.subscribe(f"user:{uid}")
        await one.bus.subscribe(f"msg:{uid}")
        await one.bus.publish(event(uid, "msg.new", id="x"))
        await one.bus.publish(event(uid, "notif.sync", id="y"))
        await eventually(lambda: len(one.heard) >= 3)
        assert sorted(channel for channel, _ in one.heard) == [f"msg:{uid}", f"user:{uid}", f"user:{uid}"]
        assert sorted(one.ids()) == ["x", "x", "y"]


async def test_published_events_are_counted_by_prefix_and_type(one: Replica, recorded: Recorded) -> None:
    await one.bus.publish(event("u"))
    await one.bus.publish(event("u", "vector.done"))
    count = "callboard_events_published_total"
    assert recorded.metric(count, prefix="user:", type="notif.job_updated") == 1
    assert recorded.metric(count, prefix="vector:of:", type="vector.done") == 1


@PLAIN
async def test_made_up_types_do_not_fill_the_metrics(one: Replica, recorded: Recorded) -> None:
    for number in range(250):
        await one.bus.publish(event("u", f"own.t{number}"))
    assert recorded.metric("callboard_events_published_total", prefix="user:", type="own.t0") == 1
    assert recorded.metric("callboard_events_published_total", prefix="user:", type="own.t249") == 0
    assert recorded.metric("callboard_events_published_total", prefix="user:", type="other") == 50


@PLAIN
async def test_the_log_shows_neither_payload_nor_data(one: Replica, recorded: Recorded) -> None:
    await one.bus.publish(Event(type="notif.x", uid="u", payload={"secret": "canary"}))
    [line] = recorded.lines("publish")
    assert line["type"] == "notif.x"
    assert "canary" not in recorded.text


# -- subscribing ------------------------------------------------------------------------------------------------------


async def listeners_of(server: Deployment, channel: str) -> int:
    """On all nodes."""
    count = 0
    for node in server.clients():
        async with node:
            [(_, heard)] = await node.pubsub_numsub(channel)
            count += int(heard)
    return count


async def test_subscriptions_are_counted(one: Replica, uid: str, redis_deployment: Deployment) -> None:
    channel = f"user:{uid}"
    await one.bus.subscribe(channel)
    await one.bus.subscribe(channel)
    await one.bus.unsubscribe(channel)
    await one.bus.publish(event(uid, id="still"))
    await eventually(lambda: one.ids() == ["still"])
    await one.bus.unsubscribe(channel)
    while await listeners_of(redis_deployment, channel):
        await asyncio.sleep(0)
    await one.bus.publish(event(uid, id="no more"))
    await one.bus.subscribe(f"user:{uid}-2")
    await one.bus.publish(event(f"{uid}-2", id="later"))
    await eventually(lambda: len(one.heard) > 1)  # in a cluster, what was published before may be under way till then
    await one.bus.subscribe(channel)
    await one.bus.publish(event(uid, id="again"))
    await eventually(lambda: len(one.heard) > 2)
    assert one.ids() == ["still", "later", "again"]


@PLAIN
async def test_unsubscribing_what_nobody_wanted_is_a_mistake(one: Replica) -> None:
    with pytest.raises(KeyError):
        await one.bus.unsubscribe("user:nobody")


async def test_a_cancelled_subscribe_counts_until_it_is_undone(one: Replica, uid: str) -> None:
    task = asyncio.create_task(one.bus.subscribe(f"user:{uid}"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await one.bus.subscribe(f"user:{uid}")
    await one.bus.unsubscribe(f"user:{uid}")
    await one.bus.publish(event(uid))
    await eventually(lambda: one.heard)
    await one.bus.unsubscribe(f"user:{uid}")
    with pytest.raises(KeyError):
        await one.bus.unsubscribe(f"user:{uid}")


async def test_thousands_subscribe_at_once(make_settings: MakeSettings, uid: str, redis_deployment: Deployment) -> None:
    async with replica(make_settings(), subscribe_timeout_s=40) as one:  # how long it takes is not the point
        await asyncio.gather(*(one.bus.subscribe(f"user:{uid}{number}") for number in range(3000)))
        for number in (0, 1500, 2999):
            assert await listeners_of(redis_deployment, f"user:{uid}{number}") == 1


async def allow_channels(one: Replica, *patterns: str) -> None:
    commands: Any = one.connections.commands
    await commands.execute_command("ACL", "SETUSER", "default", "resetchannels", *patterns)


async def test_a_channel_that_the_server_refuses_costs_the_others_nothing(own_valkey: ValkeyServer) -> None:
    async with replica(on(own_valkey)) as one:
        await one.bus.subscribe("user:u")
        await allow_channels(one)
        await eventually(lambda: one.bus.state == "down")  # its own probe is refused
        await allow_channels(one, "&user:*", "&callboard:*")
        await eventually(lambda: one.bus.state == "ok")
        with pytest.raises(Unavailable):
            await one.bus.subscribe("vector:u")
        await one.bus.publish(event("u"))
        await eventually(lambda: one.heard)
        assert one.bus.state == "ok"


@PLAIN
async def test_a_message_that_the_sink_cannot_take_costs_the_others_nothing(
    one: Replica, uid: str, recorded: Recorded
) -> None:
    def sink(channel: str, data: bytes) -> None:
        if b"poison" in data:
            raise ValueError("cannot take it")
        one.heard.append((channel, data))

    one.bus.sink = sink
    await one.bus.subscribe(f"user:{uid}")
    for id_ in ("poison", "poison too", "fine"):
        await one.bus.publish(event(uid, id=id_))
    await eventually(lambda: one.heard)
    assert one.ids() == ["fine"]
    assert recorded.metric("callboard_events_dropped_total", prefix="user:", reason="error") == 2
    assert len(recorded.lines("event_undelivered")) == 1
    assert one.gaps == 0


# -- faults -----------------------------------------------------------------------------------------------------------


async def test_the_probe_proves_the_bus(one: Replica, recorded: Recorded) -> None:
    await eventually(lambda: one.bus.state == "ok")
    first = one.bus.probed_at
    assert first is not None
    assert one.bus.probe_rtt_s
    await eventually(lambda: one.bus.probed_at != first)
    assert recorded.metric("callboard_bus_probe_rtt_seconds") > 0
    assert [line["event"] for line in recorded.lines() if line["event"].startswith("bus")] == ["bus_up"]
    assert one.gaps == 0  # nothing was missed, so nobody is told so


async def test_a_killed_server_that_comes_back(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    async with replica(on(own_valkey), recorded) as one:
        await one.bus.subscribe("user:before")
        await eventually(lambda: one.bus.state == "ok")
        await own_valkey.kill()
        await eventually(lambda: one.bus.state == "down")
        with pytest.raises(Unavailable):
            await one.bus.publish(event("before"))
        with pytest.raises(Unavailable):
            await one.bus.subscribe("user:meanwhile")
        with pytest.raises(Unavailable):
            await one.bus.subscribe("user:before")
        assert one.gaps == 0
        await own_valkey.restart()
        await eventually(lambda: one.gaps)
        assert one.bus.state == "ok"
        for uid in ("before", "meanwhile"):
            await one.bus.publish(event(uid, id=uid))
        await eventually(lambda: len(one.heard) >= 2)
        assert one.ids() == ["before", "meanwhile"]
        assert one.gaps == 1
        for name in ("gaps_total", "rebuilds_total", "up"):
            assert recorded.metric(f"callboard_bus_{name}") == 1
    names = [line["event"] for line in recorded.lines() if line["event"].startswith("bus")]
    assert names == ["bus_up", "bus_down", "bus_up", "bus_gap"]


async def test_the_gap_is_told_when_the_subscriptions_stand_again(own_valkey: ValkeyServer) -> None:
    async with replica(on(own_valkey)) as one:
        channels = [f"user:{number}" for number in range(500)]
        await asyncio.gather(*map(one.bus.subscribe, channels))
        asking: list[asyncio.Task[list[Any]]] = []

        async def ask() -> list[Any]:
            return list(await one.connections.commands.pubsub_numsub(*channels))

        one.bus.on_gap = lambda: asking.append(asyncio.create_task(ask()))
        await own_valkey.restart()
        await eventually(lambda: asking)
        assert {int(count) for _, count in await asking[0]} == {1}


async def test_a_connection_that_the_server_drops(own_valkey: ValkeyServer) -> None:
    async with replica(on(own_valkey)) as one, replica(on(own_valkey)) as sender:
        await one.bus.subscribe("user:u")
        await eventually(lambda: one.bus.state == "ok")
        for turn in ("1", "2", "3"):
            await one.connections.commands.client_kill_filter(_type="pubsub")
            await eventually(lambda: one.gaps > len(one.heard))
            await sender.bus.publish(event("u", id=turn))
            await eventually(lambda: one.gaps == len(one.heard))
        assert one.ids() == ["1", "2", "3"]


async def test_what_follows_a_gap_comes_after_it_is_told(own_valkey: ValkeyServer) -> None:
    async with replica(on(own_valkey)) as one, replica(on(own_valkey)) as sender:
        story: list[int | None] = []
        one.bus.sink = lambda _, data: story.append(int(json.loads(data)["id"]))
        one.bus.on_gap = lambda: story.append(None)
        await asyncio.gather(*(one.bus.subscribe(f"user:{number}") for number in ("u", *range(200))))
        await eventually(lambda: one.bus.state == "ok")

        async def send() -> None:
            for number in range(1_000_000):
                await sender.bus.publish(event("u", id=str(number)))

        def resumed(gaps: int) -> bool:
            return story.count(None) == gaps and story[-1] is not None

        sending = asyncio.create_task(send())
        for turn in range(1, 6):
            await one.connections.commands.client_kill_filter(_type="pubsub", skipme=True)
            await eventually(partial(resumed, turn))
        sending.cancel()
        await asyncio.wait({sending})
        missed = [later for before, later in pairwise(story) if before is not None and later not in (None, before + 1)]
        assert missed == []
        assert max(number for number in story if number is not None) >= sum(number is not None for number in story)


async def test_a_subscriber_that_the_server_finds_too_slow(own_valkey: ValkeyServer) -> None:
    async with replica(on(own_valkey)) as one:
        await one.bus.subscribe("user:u")
        await eventually(lambda: one.bus.state == "ok")
        await one.connections.commands.config_set("client-output-buffer-limit", "pubsub 1mb 256kb 5")
        flood = "local m = string.rep('x', 1000) for i = 1, 20000 do redis.call('PUBLISH', KEYS[1], m) end"
        await one.connections.commands.eval(flood, 1, "user:u")
        await eventually(lambda: one.gaps)
        await one.bus.publish(event("u"))
        await eventually(lambda: one.heard)


async def test_a_hung_server_is_noticed_by_the_probe_and_by_nothing_else(
    own_valkey: ValkeyServer, recorded: Recorded
) -> None:
    async with replica(on(own_valkey), recorded) as watched, replica(on(own_valkey), **NO_PROBE) as unwatched:
        for one in (watched, unwatched):
            await one.bus.subscribe("user:u")
        await eventually(lambda: watched.bus.state == unwatched.bus.state == "ok")
        own_valkey.pause()
        beats = 0
        async with asyncio.timeout(15):
            while watched.bus.state == "ok":
                await asyncio.sleep(0.01)
                beats += 1
        assert beats > 10  # the loop lived on
        assert unwatched.bus.state == "ok"
        assert recorded.metric("callboard_bus_probe_failures_total") == 1
        assert recorded.metric("callboard_bus_up") == 0
        async with asyncio.timeout(3):
            with pytest.raises(Unavailable):
                await watched.bus.publish(event("u"))
        own_valkey.resume()
        await eventually(lambda: watched.gaps)
        await watched.bus.publish(event("u"))
        await eventually(lambda: watched.heard)
        assert unwatched.gaps == 0


async def test_a_start_without_redis(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    await own_valkey.kill()
    async with replica(on(own_valkey), recorded) as one:
        with pytest.raises(Unavailable):
            await one.bus.subscribe("user:u")
        assert one.bus.state == "down"
        assert one.bus.probed_at is None
        [line] = recorded.lines("bus_down")  # once, however often it tries
        assert own_valkey.address in line["reason"]
        await own_valkey.restart()
        await eventually(lambda: one.gaps)
        await one.bus.publish(event("u"))
        await eventually(lambda: one.heard)


async def test_it_closes_at_once_while_the_server_hangs(own_valkey: ValkeyServer) -> None:
    tasks = asyncio.all_tasks()
    async with replica(on(own_valkey)) as one:
        await eventually(lambda: one.bus.state == "ok")
        own_valkey.pause()
        task = asyncio.create_task(one.bus.subscribe("user:u"))
        await asyncio.sleep(0)
        async with asyncio.timeout(3):
            await one.bus.__aexit__(None, None, None)
        with pytest.raises(Unavailable):
            await task
        assert asyncio.all_tasks() == tasks
        own_valkey.resume()

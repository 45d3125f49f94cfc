from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support import MakeSettings, Recorded

from callboard.connections import Connections
from callboard.errors import Unavailable
from callboard.events.bus import Bus
from callboard.events.hub import Hub
from callboard.events.outbox import Frame, Outbox, timestamp
from callboard.messages import Event, new_id
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus(make_settings: MakeSettings, connections: Connections, recorded: Recorded) -> AsyncIterator[Bus]:
    async with Bus(make_settings(), connections, recorded.telemetry, {}) as bus:
        yield bus


@pytest.fixture
def hub(bus: Bus, recorded: Recorded) -> Hub:
    hub = Hub(bus, recorded.telemetry)
    bus.sink, bus.on_gap = hub.deliver, hub.gap
    return hub


@pytest.fixture
def uid() -> str:
    return f"u-{new_id()}"


def outbox(uid: str, **limits: Any) -> Outbox:
    """A box of a socket that needs no sync."""
    box = Outbox(uid, lambda: None, **limits)
    box.begin({})
    return box


def texts(box: Outbox) -> list[str]:
    return [frame.text for frame in box.empty()]


async def until_end(box: Outbox) -> list[dict[str, Any]]:
    """The events before a `notif.end`."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while True:
            await box.wait()
            frame = box.first()
            assert frame is not None
            box.pop()
            found.append(json.loads(frame.text))
            if found[-1]["type"] == "notif.end":
                return found[:-1]


def message(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


# -- the hub


async def test_an_event_reaches_every_outbox_of_its_channel(hub: Hub, bus: Bus, uid: str) -> None:
    first, second, other = outbox(uid), outbox(uid), outbox("someone-else")
    channels = bus.channels_of_user(uid)
    await hub.join(first, channels)
    await hub.join(second, channels)
    await hub.join(other, [f"user:{uid}-2"])
    await bus.publish(Event(type="notif.add", uid=uid, payload={"n": 1}))
    await bus.publish(Event(type="msg.new", uid=uid, payload={"n": 2}))
    await eventually(lambda: len(second._ready) == 2)
    received = [json.loads(text) for text in texts(first)]
    assert [event["payload"] for event in received] == [{"n": 1}, {"n": 2}]
    assert texts(second) == [json.dumps(event, separators=(",", ":")) for event in received]
    assert texts(other) == []
    for each in (first, second, other):
        await hub.leave(each)
    assert hub._rooms == {}


async def test_one_frame_is_made_for_all_outboxes(hub: Hub, uid: str) -> None:
    boxes = [outbox(uid) for _ in range(3)]
    for box in boxes:
        await hub.join(box, [f"user:{uid}"])
    hub.deliver(f"user:{uid}", message(type="a.b", uid=uid))
    assert len({id(box.first()) for box in boxes}) == 1


async def test_the_last_to_leave_drops_the_subscription(hub: Hub, bus: Bus, uid: str, connections: Connections) -> None:
    first, second = outbox(uid), outbox(uid)
    channel = f"user:{uid}"

    async def subscribers() -> int:
        [(_, count)] = await connections.commands.pubsub_numsub(channel)
        return int(count)

    await hub.join(first, [channel])
    await hub.join(second, [channel])
    assert await subscribers() == 1
    await hub.leave(first)
    assert await subscribers() == 1
    await hub.leave(second)
    async with asyncio.timeout(20):
        while await subscribers():
            await asyncio.sleep(0.005)
    hub.deliver(channel, message(type="late.one", uid=uid))


async def test_a_join_without_redis_says_so_and_counts_all_the_same(
    own_valkey: ValkeyServer, make_settings: MakeSettings, recorded: Recorded, uid: str
) -> None:
    settings = make_settings(LISTENERS_REDIS_PORT=str(own_valkey.port))
    await own_valkey.kill()
    async with (
        Connections(settings, recorded.telemetry, attempt_timeout_s=0.2, call_limit_s=0.5) as connections,
        Bus(settings, connections, recorded.telemetry, {}, subscribe_timeout_s=0.1, backoff_s=(0.01, 0.1)) as bus,
    ):
        hub = Hub(bus, recorded.telemetry)
        bus.sink, bus.on_gap = hub.deliver, hub.gap
        box = outbox(uid)
        box.begin({})
        with pytest.raises(Unavailable):
            await hub.join(box, bus.channels_of_user(uid))
        await own_valkey.restart()
        await eventually(lambda: box.needs_sync)
        box.begin({})
        await bus.publish(Event(type="notif.add", uid=uid, payload={}))
        await eventually(lambda: box.first())
        await hub.leave(box)


async def test_a_cancelled_join_is_undone_by_leave(hub: Hub, bus: Bus, uid: str) -> None:
    box = outbox(uid)
    joining = asyncio.create_task(hub.join(box, bus.channels_of_user(uid)))
    await asyncio.sleep(0)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    await hub.leave(box)
    assert hub._rooms == {}
    again = outbox(uid)
    await hub.join(again, bus.channels_of_user(uid))
    await bus.publish(Event(type="notif.add", uid=uid, payload={}))
    await eventually(lambda: again.first())


async def test_what_foreign_publishers_send_passes_unchanged(hub: Hub, uid: str) -> None:
    box = outbox(uid)
    await hub.join(box, [f"user:{uid}"])
    for foreign in (
        '{"event": "anything", "n": 1}',
        '{ "type" : 5, "uid": [], "fence": "x", "timestamp": {} }',
        '{"type":"notif.add","uid":"é","fence":true}',
        "{}",
    ):
        hub.deliver(f"user:{uid}", foreign.encode())
        assert texts(box) == [foreign]


async def test_what_is_no_json_object_is_dropped_and_counted(hub: Hub, uid: str, recorded: Recorded) -> None:
    box = outbox(uid)
    await hub.join(box, [f"user:{uid}"])
    junk = [b"", b"hello", b"[1]", b'"text"', b"1", b"null", b'{"a":', b'{"a":NaN}', b'{"a":"\xff"}', b"\xef\xbb\xbf{}"]
    junk += [b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", '{"a":1}'.encode("utf-16")]
    for data in junk:
        hub.deliver(f"user:{uid}", data)
    assert texts(box) == []
    dropped = recorded.metric("callboard_events_dropped_total", prefix="user:", reason="not_json")
    assert dropped == len(junk)


async def test_an_owner_that_was_replaced_is_not_heard(hub: Hub, uid: str, recorded: Recorded) -> None:
    box = outbox(uid)
    await hub.join(box, [f"user:{uid}"])

    def deliver(n: int, kind: str, user: str, fence: int | None) -> None:
        fields = {} if fence is None else {"fence": fence}
        hub.deliver(f"user:{uid}", message(n=n, type=kind, uid=user, **fields))

    deliver(1, "notif.add", uid, 5)
    deliver(2, "notif.update", uid, 4)
    deliver(3, "notif.update", uid, 5)
    deliver(4, "workflow.step_update", uid, 1)
    deliver(5, "notif.add", "another", 1)
    deliver(6, "notif.sync", uid, 6)
    deliver(7, "notif.add", uid, 5)
    deliver(8, "notif.add", uid, None)
    assert [json.loads(text)["n"] for text in texts(box)] == [1, 3, 4, 5, 6, 8]
    assert recorded.metric("callboard_events_dropped_total", prefix="user:", reason="fenced") == 2


async def test_listeners_whose_events_begin_alike_do_not_silence_each_other(hub: Hub, uid: str) -> None:
    box = outbox(uid)
    await hub.join(box, [f"user:{uid}"])
    for n, listener, fence in [(1, "shop.items", 9), (2, "desk.pins", 5), (3, "shop.items", 8), (4, "desk.pins", 5)]:
        hub.deliver(f"user:{uid}", message(n=n, type="notif.add", uid=uid, listener=listener, fence=fence))
    hub.deliver(f"user:{uid}", message(n=5, type="notif.add", uid=uid, fence=1))
    hub.deliver(f"user:{uid}", message(n=6, type="notif.add", uid=uid, listener=["foreign"], fence=1))
    assert [json.loads(text)["n"] for text in texts(box)] == [1, 2, 4, 5, 6]


async def test_fences_take_bounded_memory(bus: Bus, recorded: Recorded) -> None:
    hub = Hub(bus, recorded.telemetry, max_fences=10)
    box = outbox("u")
    await hub.join(box, ["user:u"])
    for number in range(100):
        hub.deliver("user:u", message(type="notif.add", uid="kept", fence=7))
        hub.deliver("user:u", message(type="notif.add", uid=f"u{number}", fence=1))
    assert len(hub._fences) == 10
    box.empty()
    hub.deliver("user:u", message(type="notif.add", uid="kept", fence=6))
    assert texts(box) == []


async def test_metrics_name_prefixes_and_never_users(hub: Hub, bus: Bus, uid: str, recorded: Recorded) -> None:
    box = outbox(uid)
    await hub.join(box, [*bus.channels_of_user(uid), f"chat:{uid}:space:thread"])
    past = (datetime.now(UTC) - timedelta(seconds=2)).isoformat().replace("+00:00", "Z")
    hub.deliver(f"user:{uid}", message(type="notif.add", uid=uid, timestamp=past))
    hub.deliver(f"chat:{uid}:space:thread", message(type="chat.message", uid=uid))
    assert recorded.metric("callboard_events_delivered_total", prefix="user:") == 1
    assert recorded.metric("callboard_events_delivered_total", prefix="chat:") == 1
    assert recorded.metric("callboard_event_lag_seconds_count") == 1
    assert recorded.metric("callboard_event_lag_seconds_sum") >= 2


async def test_what_is_no_event_is_not_counted_as_lost(hub: Hub, recorded: Recorded) -> None:
    hub.count_lost([Frame('{"type":"pong"}', 15), Frame("{}", 2, label="user:")], "closed")
    dropped = {"name": "callboard_events_dropped_total", "reason": "closed"}
    assert [recorded.metric(**dropped, prefix=prefix) for prefix in ("user:", "")] == [1, 0]


@pytest.mark.parametrize("protected", [True, False])
async def test_a_socket_gets_a_message_that_comes_on_two_channels_once(
    make_settings: MakeSettings, connections: Connections, recorded: Recorded, uid: str, protected: bool
) -> None:
    settings = make_settings(LISTENERS_MSG_ON_USER_CHANNEL="true")
    async with Bus(settings, connections, recorded.telemetry, {}) as bus:
        hub = Hub(bus, recorded.telemetry)
        bus.sink, bus.on_gap = hub.deliver, hub.gap
        if not protected:  # the control
            hub._is_double = lambda *_: False  # type: ignore[method-assign]
        box, other = outbox(uid), outbox(f"{uid}-2")
        await hub.join(box, bus.channels_of_user(uid))
        await hub.join(other, bus.channels_of_user(other.uid))
        sent = [Event(type="msg.new", uid=uid, payload={"n": number}) for number in range(3)]
        for event in sent:
            await bus.publish(event)
        await bus.publish(Event(type="msg.new", uid=other.uid, id=sent[0].id, payload={}))  # of another user's: none
        for each in (uid, other.uid):
            await bus.publish(Event(type="notif.end", uid=each, payload={}))
        times = 1 if protected else 2
        assert [event["id"] for event in await until_end(box)] == [event.id for event in sent for _ in range(times)]
        assert [event["id"] for event in await until_end(other)] == [sent[0].id] * times
    if protected:
        assert recorded.metric("callboard_events_dropped_total", prefix="user:", reason="double") == 4


async def test_metrics_name_no_user_whose_id_ends_a_thread_key(hub: Hub, bus: Bus, recorded: Recorded) -> None:
    channel = bus.channel_of("chat.message", "7", ("space", "invoice-17"))
    await hub.join(outbox("7"), [channel])
    hub.deliver(channel, message(type="chat.message", uid="7"))
    assert recorded.metric("callboard_events_delivered_total", prefix="chat:") == 1


async def test_one_full_outbox_costs_the_others_nothing(hub: Hub, uid: str, recorded: Recorded) -> None:
    overflows: list[str] = []
    small = Outbox(uid, lambda: overflows.append("small"), max_bytes=200)
    large = outbox(uid)
    for box in (small, large):
        await hub.join(box, [f"user:{uid}"])
    for number in range(50):
        hub.deliver(f"user:{uid}", message(n=number, type="a.b", uid=uid))
    assert overflows == ["small"]
    assert len(texts(large)) == 50
    assert recorded.metric("callboard_events_dropped_total", prefix="user:", reason="too_slow") == 50 - len(
        texts(small)
    )


async def test_a_gap_asks_every_outbox_for_a_sync(hub: Hub, uid: str) -> None:
    boxes = [outbox(uid), outbox("other")]
    for box in boxes:
        await hub.join(box, [f"user:{box.uid}"])
        assert not box.needs_sync
    hub.gap()
    assert all(box.needs_sync for box in boxes)
    await boxes[0].gap()


# -- the outbox


def frame(text: str = "x", **about: Any) -> Frame:
    return Frame(text, len(text), **about)


def written(box: Outbox) -> list[str]:
    """What the box lets go now."""
    left = []
    while (first := box.first()) is not None:
        left.append(first.text)
        box.pop()
    return left


async def test_frames_leave_in_order() -> None:
    box = outbox("u")
    box.begin({})
    waiting = asyncio.create_task(box.wait())
    for text in "abc":
        box.push(frame(text))
    await waiting
    assert written(box) == ["a", "b", "c"]
    assert box._bytes == 0


async def test_a_frame_larger_than_the_box_passes_alone() -> None:
    box = outbox("u", max_bytes=10)
    assert box.push(frame("x" * 100)) is None
    assert box.push(frame("y")) == box.push(frame("z")) == "too_slow"


async def test_the_oldest_frame_may_not_wait_for_ever() -> None:
    overflows: list[int] = []
    box = Outbox("u", lambda: overflows.append(1), max_age_s=20)
    box.begin({"shop.items": None})
    old = frame()
    old.born -= 100
    box.push(old)
    assert not box.is_late(time.monotonic()), "the time of a sync is not the client's fault"
    box.synced("shop.items", [], {})
    now = time.monotonic()
    assert not box.is_late(now + 19)
    assert box.is_late(now + 21)
    late = frame()
    late.born += 21
    assert box.push(late) == "too_slow"
    assert overflows == [1]


READ_AT = datetime(2025, 1, 1, 12, tzinfo=UTC)
BEFORE, AFTER = READ_AT - timedelta(seconds=1), READ_AT + timedelta(seconds=1)


async def test_a_sync_covers_what_is_older_than_its_read_time() -> None:
    box = Outbox("u", lambda: None, max_bytes=1_000)
    for text, segment, sent_at in [
        ("older", "notif", BEFORE),
        ("same", "notif", READ_AT),
        ("newer", "notif", AFTER),
        ("other", "workflow", BEFORE),
        ("unknown", "notif", None),
    ]:
        box.push(frame(text, segment=segment, sent_at=sent_at))
    assert box.first() is None
    box.begin({"shop.items": None})
    assert box.first() is None
    covered = box.synced("shop.items", ["sync"], {"notif": READ_AT})
    assert [each.text for each in covered] == ["older"]
    assert box._bytes == sum(map(len, ["same", "newer", "other", "unknown"]))
    assert written(box) == ["sync", "same", "newer", "other", "unknown"]


async def test_a_listeners_events_wait_for_its_own_sync_alone() -> None:
    box = outbox("u")
    box.begin({"shop.items": frozenset({"notif"}), "desk.pins": frozenset({"notif"}), "slow.one": frozenset({"slow"})})
    for text, listener in [("item", "shop.items"), ("pin", "desk.pins"), ("slow", "slow.one"), ("older", "desk.pins")]:
        box.push(frame(text, listener=listener, segment="notif", sent_at=BEFORE if text == "older" else AFTER))
    box.push(frame("unnamed", segment="notif", sent_at=BEFORE))
    box.push(frame("free", segment="free"))
    assert written(box) == ["free"]
    assert box.synced("shop.items", ["items"], {"notif": READ_AT}) == []
    assert written(box) == ["items", "item"]
    assert [each.text for each in box.synced("desk.pins", ["pins"], {"notif": BEFORE})] == [], "read no later than it"
    assert written(box) == ["pins", "pin", "older", "unnamed"]
    box.synced("slow.one", [], {})
    assert written(box) == ["slow"]


async def test_what_a_listener_that_cannot_be_read_sends_is_left_to_its_next_sync() -> None:
    box = outbox("u")
    box.begin({"shop.items": None})
    box.push(frame("during", listener="shop.items"))
    box.push(frame("unnamed", segment="notif"))
    assert [each.text for each in box.failed("shop.items")] == ["during"]
    assert box.push(frame("later", listener="shop.items")) == "covered"
    assert written(box) == ["unnamed"]
    box.hold("shop.items", frozenset({"notif"}))
    box.push(frame("again", listener="shop.items"))
    assert written(box) == []
    box.synced("shop.items", ["sync"], {"notif": READ_AT})
    assert written(box) == ["sync", "again"]
    assert box._bytes == 0


async def test_a_sync_that_a_listener_publishes_counts_as_one() -> None:
    box = outbox("u")
    box.begin({"shop.items": None})
    box.failed("shop.items")
    box.push(frame("published", listener="shop.items", is_sync=True))
    box.push(frame("delta", listener="shop.items"))
    box.hold("shop.items", None)
    assert written(box) == []
    box.push(frame("another", listener="shop.items", is_sync=True))
    assert box.failed("shop.items") == []
    assert written(box) == ["published", "delta", "another"]


async def test_after_a_gap_all_waits_anew() -> None:
    box = outbox("u")
    box.begin({"shop.items": None})
    box.synced("shop.items", ["first"], {})
    for text in "ab":
        box.push(frame(text, listener="shop.items"))
    box.mark_gap()
    box.push(frame("c", listener="shop.items"))
    box.push(frame("pong"), waits=False)
    assert written(box) == ["pong"]
    box.begin({"shop.items": None})
    assert written(box) == []
    box.synced("shop.items", ["second"], {})
    assert written(box) == ["second", "a", "b", "c"]
    box.push(frame("left"))
    assert [each.text for each in box.empty()] == ["left"]


def test_times_on_the_wire() -> None:
    noon = datetime(2025, 9, 20, 12, tzinfo=UTC)
    for text in (
        "2025-09-20T12:00:00.000Z",
        "2025-09-20T12:00:00+00:00",
        "2025-09-20T14:00:00+02:00",
        "2025-09-20T12:00",
    ):
        assert timestamp(text) == noon
    for other in ("yesterday", "", None, 5, ["x"]):
        assert timestamp(other) is None

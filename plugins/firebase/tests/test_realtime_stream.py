"""What the Realtime Database does on its bad days, played by a scripted server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from google.auth.exceptions import RefreshError, TransportError

from callboard.errors import (
    CallError,
    FailedPrecondition,
    InvalidArgs,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from callboard_firebase import NodeBatch, Query, RealtimeOptions

from .realtime_server import QUICK, CountedTokens, Exchange, Script, served

pytestmark = pytest.mark.anyio


async def take(batches: AsyncIterator[NodeBatch]) -> NodeBatch:
    """The next batch; a test that waits for one in vain fails here."""
    async with asyncio.timeout(20):
        return await anext(batches)


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def changes(batch: NodeBatch) -> list[tuple[str, str, object]]:
    return sorted((change.kind, change.key, change.value) for change in batch.changes)


async def one_state(exchange: Exchange) -> None:
    """`a` is 1, and nothing more happens."""
    await exchange.stream()
    await exchange.put("/", {"a": 1})
    await exchange.silence()


# -- what is asked and what comes


async def test_a_watch_asks_for_a_stream_of_events() -> None:
    async with served(one_state) as (server, database), database.watch("x/y", Query(limit_to_last=2)) as batches:
        batch = await take(batches)
        assert batch.initial
        assert changes(batch) == [("added", "a", 1)]
        exchange = server.exchanges[0]
        assert (exchange.method, exchange.path) == ("GET", "/x/y.json")
        assert exchange.query == {"orderBy": '"$key"', "limitToLast": "2", "ns": "demo"}
        assert exchange.headers["accept"] == "text/event-stream"
        assert exchange.token == "owner"


async def test_puts_and_patches_change_children() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", {"a": {"x": {"y": 1}}, "b": 1, "c": 1})
        await exchange.event("keep-alive", None)
        await client.wait()
        await exchange.put("/a/x/y", 2)
        await exchange.patch("/", {"b": None, "d/deep": 1, "c": 1})
        await exchange.patch("/a", {"x/z": 3, "w": None})
        await exchange.put("/e", None)
        await exchange.put("/end", True)
        await exchange.silence()

    client = asyncio.Event()
    async with served(script) as (_, database), database.watch("x") as batches:
        first = await take(batches)
        client.set()
        seen: dict[str, object] = {}
        batch = first
        while "end" not in batch.children:
            batch = await take(batches)
            seen.update({change.key: (change.kind, change.value) for change in batch.changes})
        assert seen == {
            "a": ("modified", {"x": {"y": 2, "z": 3}}),
            "b": ("removed", 1),
            "d": ("added", {"deep": 1}),
            "end": ("added", True),
        }
        assert batch.children == {"a": {"x": {"y": 2, "z": 3}}, "c": 1, "d": {"deep": 1}, "end": True}
        assert first.children == {"a": {"x": {"y": 1}}, "b": 1, "c": 1}


@pytest.mark.parametrize("value", [None, 5, "text", False])
async def test_a_node_that_is_no_object_has_no_children(value: object) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", value)
        await client.wait()
        await exchange.put("/a", 1)
        await exchange.silence()

    client = asyncio.Event()
    async with served(script) as (_, database), database.watch("x") as batches:
        batch = await take(batches)
        assert batch.initial
        assert (batch.changes, dict(batch.children)) == ((), {})
        client.set()
        assert changes(await take(batches)) == [("added", "a", 1)]


async def test_an_ancestor_that_goes_takes_the_children_along() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", {"a": {"b": 1}, "c": 2})
        await client.wait()
        await exchange.put("/", None)
        await exchange.silence()

    client = asyncio.Event()
    async with served(script) as (_, database), database.watch("x") as batches:
        await take(batches)
        client.set()
        assert changes(await take(batches)) == [("removed", "a", {"b": 1}), ("removed", "c", 2)]


async def test_separators_inside_a_text_are_text() -> None:
    text = "a\u2028b\u2029c\u0085d\x0be"

    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", {"a": text})
        await exchange.silence()

    async with served(script) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).children == {"a": text}


async def test_a_huge_event_is_taken_in_beside_the_loop() -> None:
    huge = {f"k{number}": "x" * 1_000 for number in range(5_000)}

    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", huge)
        await exchange.put("/k0", "y")
        await exchange.silence()

    threads: set[str] = set()
    async with served(script) as (_, database), database.watch("x") as batches:
        batch = await take(batches)
        threads.update(thread.name for thread in threading.enumerate())
        while batch.children["k0"] == "x" * 1_000:
            batch = await take(batches)
        assert batch.children == huge | {"k0": "y"}
        assert any(name.startswith("asyncio_") for name in threads)


async def test_an_event_beyond_the_limit_ends_the_watch() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", "x" * 10_000)
        await exchange.silence()

    async with served(script, replace(QUICK, max_body_bytes=5_000)) as (server, database):
        async with database.watch("x") as batches:
            with pytest.raises(FailedPrecondition):
                await take(batches)
        assert len(server.exchanges) == 1


async def test_a_slow_consumer_finds_the_latest_state() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", {"a": 0, "gone": 1})
        await client.wait()
        for number in range(1, 2_001):
            await exchange.put(f"/{'ab'[number % 2]}", number)
        await exchange.put("/gone", None)
        await exchange.put("/passing", 1)
        await exchange.put("/passing", None)
        await exchange.put("/end", 1)
        await exchange.silence()

    client = asyncio.Event()
    async with served(script) as (_, database), database.watch("x") as batches:
        await take(batches)
        client.set()
        await reached(lambda: "end" in batches.children)
        assert len(batches._unseen) <= 5  # by the children, not by the events
        assert changes(await take(batches)) == [
            ("added", "b", 1_999),
            ("added", "end", 1),
            ("modified", "a", 2_000),
            ("removed", "gone", 1),
            ("removed", "passing", 1),
        ]


# -- the stream ends


async def ends_with_reset(exchange: Exchange) -> None:
    exchange.reset()


async def ends_with_half_an_event(exchange: Exchange) -> None:
    await exchange.raw(b'event: put\ndata: {"path": "/", "data": {"never": 1}}\n')


async def ends_in_the_middle_of_json(exchange: Exchange) -> None:
    await exchange.raw(b'event: put\ndata: {"path": "/", "da')
    exchange.reset()


async def ends_with_no_json(exchange: Exchange) -> None:
    await exchange.raw(b'event: put\ndata: {"path": "/"\n\n')
    await exchange.silence()


async def ends_with_no_utf8(exchange: Exchange) -> None:
    await exchange.raw(b'event: put\ndata: {"path": "/", "data": "\xff"}\n\n')
    await exchange.silence()


async def ends_with_a_patch_of_nothing(exchange: Exchange) -> None:
    await exchange.patch("/", None)
    await exchange.silence()


async def ends_with_cancel_null(exchange: Exchange) -> None:
    await exchange.event("cancel", None)
    await exchange.silence()


async def ends_with_cancel_text(exchange: Exchange) -> None:
    await exchange.event("cancel", "the server moves")
    await exchange.silence()


async def ends_with_auth_revoked(exchange: Exchange) -> None:
    await exchange.event("auth_revoked", "credential is no longer valid")
    await exchange.silence()


async def ends_with_another_auth_revoked(exchange: Exchange) -> None:
    await exchange.raw(b"event: auth_revoked\ndata: Auth token is expired\n\n")
    await exchange.silence()


async def ends_quietly(exchange: Exchange) -> None:
    return


@pytest.mark.fault(row=22)
@pytest.mark.parametrize(
    "ending",
    [
        ends_quietly,
        ends_with_reset,
        ends_with_half_an_event,
        ends_in_the_middle_of_json,
        ends_with_no_json,
        ends_with_no_utf8,
        ends_with_a_patch_of_nothing,
        ends_with_cancel_null,
        ends_with_cancel_text,
        ends_with_auth_revoked,
        ends_with_another_auth_revoked,
    ],
)
async def test_a_stream_that_ends_is_reopened_and_only_what_changed_is_told(ending: Script) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        if exchange.number == 1:
            await exchange.put("/", {"same": {"n": [1, True, 1.5]}, "changed": 1, "gone": 1})
            await client.wait()
            await ending(exchange)
            return
        await exchange.put("/", {"new": 1, "changed": True, "same": {"n": [1, True, 1.5]}})
        await exchange.silence()

    client = asyncio.Event()
    async with served(script) as (server, database), database.watch("x") as batches:
        await take(batches)
        client.set()
        batch = await take(batches)
        assert not batch.initial
        assert changes(batch) == [("added", "new", 1), ("modified", "changed", True), ("removed", "gone", 1)]
        assert len(server.exchanges) == 2
        stats = database.stats()
        assert (stats.streams, stats.connected, stats.backing_off, stats.reconnects) == (1, 1, 0, 1)


@pytest.mark.fault(row=22)
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_server_that_refuses_for_now_is_asked_again(status: int) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number < 4:
            await exchange.refuse(status)
        else:
            await one_state(exchange)

    async with served(script) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).initial
        assert database.stats().reconnects == 3
        assert database.stats().last_end == f"HTTP {status}"


async def test_a_page_instead_of_a_stream_is_passing_trouble() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number > 1:
            await one_state(exchange)
            return
        await exchange.stream("text/html")
        await exchange.put("/", {"not": "believed"})
        await exchange.silence()

    async with served(script) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).children == {"a": 1}


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "bad", InvalidArgs),
        (400, "Index not defined", FailedPrecondition),
        (401, "Permission denied", PermissionDenied),
        (403, "no", PermissionDenied),
        (404, "no", NotFound),
        (423, "no", FailedPrecondition),
    ],
)
async def test_a_refusal_for_good_ends_that_watch_alone(status: int, text: str, kind: type[CallError]) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.path == "/bad.json":
            await exchange.refuse(status, text)
        else:
            await one_state(exchange)

    async with served(script) as (server, database), database.watch("good") as good:
        async with database.watch("bad") as bad:
            with pytest.raises(kind):
                await take(bad)
            with pytest.raises(kind):
                await take(bad)
        assert (await take(good)).initial
        assert len([exchange for exchange in server.exchanges if exchange.path == "/bad.json"]) == 1
        assert database.stats().streams == 1


async def test_a_cancel_for_lack_of_permission_ends_the_watch_after_its_last_batch() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", {"a": 1})
        await exchange.event("cancel", "Permission denied")
        await exchange.silence()

    async with served(script) as (server, database), database.watch("x") as batches:
        await reached(lambda: database.stats().streams == 0)
        assert (await take(batches)).initial
        with pytest.raises(PermissionDenied):
            await take(batches)
        assert len(server.exchanges) == 1


async def test_a_cancel_without_a_reason_ends_it_when_the_rules_say_so() -> None:
    """What Google sends when its rules change is a null: the next question is refused."""

    async def script(exchange: Exchange) -> None:
        if exchange.number > 1:
            await exchange.refuse(401, "Permission denied")
            return
        await exchange.stream()
        await exchange.put("/", {"a": 1})
        await exchange.event("cancel", None)
        await exchange.silence()

    async with served(script) as (_, database), database.watch("x") as batches:
        await take(batches)
        with pytest.raises(PermissionDenied):
            await take(batches)


# -- silence


async def mute_once(exchange: Exchange) -> None:
    await exchange.stream()
    await exchange.put("/", {"a": exchange.number})
    await exchange.silence()


@pytest.mark.fault(row=22)
async def test_a_mute_line_is_reopened() -> None:
    hasty = replace(QUICK, silence_timeout_s=0.1)
    async with served(mute_once, hasty) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).initial
        assert changes(await take(batches))[0][:2] == ("modified", "a")
        assert database.stats().last_end == "silent"


@pytest.mark.fault(row=22, control=True)
async def test_without_the_limit_a_mute_line_stays_so() -> None:
    async with (
        served(mute_once) as (patient, control),
        control.watch("x") as unheard,
        served(mute_once, replace(QUICK, silence_timeout_s=0.1)) as (hasty, database),
        database.watch("x"),
    ):
        await take(unheard)
        await hasty.asked(3)
        assert len(patient.exchanges) == 1


async def test_a_line_that_keeps_alive_is_not_mute() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", {"a": 1})
        for _ in range(12):
            await asyncio.sleep(0.1)  # all of them together are longer than the limit
            await exchange.event("keep-alive", None)
        await exchange.put("/b", 1)
        await exchange.silence()

    hasty = replace(QUICK, silence_timeout_s=1.0)
    async with served(script, hasty) as (server, database), database.watch("x") as batches:
        await take(batches)
        assert changes(await take(batches)) == [("added", "b", 1)]
        assert len(server.exchanges) == 1


async def test_a_server_that_accepts_and_never_answers_is_left() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.silence()
        else:
            await one_state(exchange)

    hasty = replace(QUICK, silence_timeout_s=0.1)
    async with served(script, hasty) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).initial


# -- back-off


async def test_a_server_that_refuses_for_ever_is_asked_seldom() -> None:
    seldom = RealtimeOptions(backoff_base_s=0.001, backoff_cap_s=0.002, reopens=10, reopens_window_s=60)
    often = replace(seldom, reopens=1_000)

    async def script(exchange: Exchange) -> None:
        await exchange.refuse(503)

    async with served(script, seldom) as (server, database), database.watch("x"):
        # Four more at once, and the rest of the ten are spread over the minute.
        await server.asked(5)
        await reached(lambda: database.stats().backing_off == 1)
        # The control: without the ceiling, 100 come while the guarded stream opens none.
        async with served(script, often) as (loud, control), control.watch("x"):
            await loud.asked(100)
        assert len(server.exchanges) == 5


async def test_while_the_database_is_away_one_stream_asks_for_all() -> None:
    seldom = RealtimeOptions(backoff_base_s=0.001, backoff_cap_s=0.002, reopens=10, reopens_window_s=60)

    async def script(exchange: Exchange) -> None:
        await exchange.refuse(503)

    async with served(script, seldom) as (server, database), AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(database.watch("x"))
        await server.asked(10 + 4)
        await reached(lambda: database.stats().backing_off == 10)
        # The control: streams that know nothing of each other ask four times more each.
        for _ in range(10):
            lone, control = await stack.enter_async_context(served(script, seldom))
            await stack.enter_async_context(control.watch("x"))
            await lone.asked(1 + 4)
        assert len(server.exchanges) == 10 + 4


async def test_once_one_is_answered_all_are_back() -> None:
    """The one that asked gets no state at all: the others do not wait for that."""
    back = asyncio.Event()
    mute: list[Exchange] = []

    async def script(exchange: Exchange) -> None:
        if not back.is_set():
            await exchange.refuse(503)
        elif not mute:
            mute.append(exchange)
            await exchange.stream()
            await exchange.silence()
        else:
            await one_state(exchange)

    async with served(script) as (server, database), AsyncExitStack() as stack:
        for _ in range(50):
            await stack.enter_async_context(database.watch("x"))
        await server.asked(50 + 3)
        assert database.stats().connected == 0
        asked = len(server.exchanges)
        back.set()
        await reached(lambda: database.stats().connected == 49)
        assert len(server.exchanges) <= asked + 50


@pytest.mark.fault(row=22)
async def test_a_server_that_was_away_is_found_again_soon() -> None:
    """The general cap would make this wait for an hour."""
    patient = replace(QUICK, backoff_base_s=3_600, backoff_cap_s=3_600, unavailable_cap_s=0.02)

    async def script(exchange: Exchange) -> None:
        if exchange.number < 4:
            exchange.reset()
        else:
            await one_state(exchange)

    async with served(script, patient) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).initial


async def test_a_used_up_quota_is_answered_with_the_longest_back_off() -> None:
    patient = replace(QUICK, backoff_base_s=0.001, backoff_cap_s=3_600)

    async def script(exchange: Exchange) -> None:
        await exchange.refuse(429)

    async with served(script, patient) as (server, database), database.watch("x"):
        await server.asked(1)
        await reached(lambda: database.stats().backing_off == 1)
        # The control: after any other refusal the delays begin at a millisecond.
        async with served(script, QUICK) as (loud, control), control.watch("x"):
            await loud.asked(5)
        assert len(server.exchanges) == 1


async def test_streams_are_opened_some_at_a_time() -> None:
    async def script(exchange: Exchange) -> None:
        await gate.wait()
        await one_state(exchange)

    gate = asyncio.Event()
    async with (
        served(script, replace(QUICK, openings=2)) as (server, database),
        AsyncExitStack() as stack,
        served(script, replace(QUICK, openings=5)) as (crowded, control),
    ):
        watches = [await stack.enter_async_context(database.watch("x")) for _ in range(5)]
        await server.asked(2)
        # The control: with room for five, five are asked for while the others wait for the two.
        for _ in range(5):
            await stack.enter_async_context(control.watch("x"))
        await crowded.asked(5)
        assert len(server.exchanges) == 2
        gate.set()
        assert all([(await take(watch)).initial for watch in watches])


# -- tokens


@pytest.mark.fault(row=22)
async def test_a_revoked_token_is_renewed() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream()
        await exchange.put("/", {"token": exchange.token})
        if exchange.token == "t1":
            await client.wait()
            await ends_with_auth_revoked(exchange)
        await exchange.silence()

    client = asyncio.Event()
    async with served(script, tokens=CountedTokens()) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).children == {"token": "t1"}
        client.set()
        assert changes(await take(batches)) == [("modified", "token", "t2")]


async def test_a_refused_token_is_renewed() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.token == "t3":
            await one_state(exchange)
        else:
            await exchange.refuse(401, "Unauthorized request.")

    async with served(script, tokens=CountedTokens()) as (server, database), database.watch("x") as batches:
        assert (await take(batches)).initial
        assert [exchange.token for exchange in server.exchanges] == ["t1", "t2", "t3"]


async def test_two_fresh_tokens_refused_end_the_watch() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.refuse(401, "Unauthorized request.")

    async with served(script, tokens=CountedTokens()) as (server, database), database.watch("x") as batches:
        with pytest.raises(Unauthenticated):
            await take(batches)
        assert [exchange.token for exchange in server.exchanges] == ["t1", "t2", "t3"]


async def test_refusals_do_not_add_up_across_healthy_connections() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number % 2:
            await exchange.refuse(401, "Unauthorized request.")
            return
        await exchange.stream()
        await exchange.put("/", {"n": exchange.number})
        if exchange.number < 10:
            await exchange.event("auth_revoked", None)
        await exchange.silence()

    async with served(script, tokens=CountedTokens()) as (_, database), database.watch("x") as batches:
        batch = await take(batches)
        while batch.children["n"] != 10:
            batch = await take(batches)


class FailingTokens(CountedTokens):
    """Fails so many times before it answers."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__()
        self.asked = 0
        self._error = error
        self._times = times

    async def get(self, refused: str | None = None) -> str:
        self.asked += 1
        if self.asked <= self._times:
            raise self._error
        return await super().get(refused)


PASSING: list[Exception] = [
    TransportError("canary"),  # type: ignore[no-untyped-call]
    RefreshError("canary", retryable=True),  # type: ignore[no-untyped-call]
    Unavailable("slow"),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
async def test_a_token_that_cannot_be_had_for_now_is_asked_for_again(error: Exception) -> None:
    tokens = FailingTokens(error, 5)
    async with served(one_state, tokens=tokens) as (_, database), database.watch("x") as batches:
        assert (await take(batches)).initial
        assert tokens.asked == 6


async def test_an_account_that_gets_no_token_ends_the_watch() -> None:
    refused = RefreshError("canary: invalid_grant")  # type: ignore[no-untyped-call]
    tokens = FailingTokens(refused, 10)
    async with served(one_state, tokens=tokens) as (server, database), database.watch("x") as batches:
        with pytest.raises(Unauthenticated) as caught:
            await take(batches)
        assert "canary" not in str(caught.value)
        assert tokens.asked == 3
        assert server.exchanges == []


# -- redirects


async def test_a_stream_that_moved_is_followed_with_its_token() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.path == "/x.json":
            await exchange.redirect("/moved.json?ns=demo")
        else:
            await one_state(exchange)

    async with served(script, tokens=CountedTokens()) as (server, database), database.watch("x") as batches:
        assert (await take(batches)).initial
        assert [(exchange.path, exchange.token) for exchange in server.exchanges] == [
            ("/x.json", "t1"),
            ("/moved.json", "t1"),
        ]


async def test_a_stream_takes_its_token_to_no_other_host() -> None:
    async with served(one_state) as (other, _):

        async def script(exchange: Exchange) -> None:
            await exchange.redirect(f"http://{other.address}/x.json")

        async with served(script, tokens=CountedTokens()) as (server, database), database.watch("x"):
            await server.asked(3)
            assert other.exchanges == []


# -- the end


async def test_leaving_closes_the_connection() -> None:
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await one_state(exchange)
        left.set()

    async with served(script) as (_, database):
        async with database.watch("x") as batches:
            await take(batches)
        assert database.stats().streams == database.stats().connected == 0
        async with asyncio.timeout(20):
            await left.wait()


async def test_closing_the_database_ends_its_watches() -> None:
    async with served(one_state) as (_, database), database.watch("x") as batches:
        await take(batches)
        await database.__aexit__(None, None, None)
        with pytest.raises(Unavailable):
            await take(batches)


async def test_a_stream_that_dies_of_a_fault_of_ours_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(CountedTokens):
        async def get(self, refused: str | None = None) -> str:
            raise LookupError("canary")

    async with served(one_state, tokens=Broken()) as (_, database), database.watch("x") as batches:
        with pytest.raises(CallError) as caught:
            await take(batches)
        assert caught.value.code == "INTERNAL"
        assert isinstance(caught.value.__cause__, LookupError)
    assert "LookupError" in caplog.text
    assert "canary" not in caplog.text


async def test_the_stats_tell_how_the_streams_are() -> None:
    async with served(one_state) as (_, database):
        empty = database.stats()
        assert (empty.streams, empty.silent_s, empty.last_event_s, empty.last_end) == (0, None, None, None)
        async with database.watch("x") as one, database.watch("y") as two:
            await take(one)
            await take(two)
            stats = database.stats()
            assert (stats.streams, stats.connected, stats.backing_off, stats.reconnects) == (2, 2, 0, 0)
            assert stats.last_event_s is not None
            assert stats.silent_s is not None
            assert min(stats.silent_s, stats.last_event_s) >= 0

"""What Firestore does on its bad days, played by a scripted Listen server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from google.auth.credentials import Credentials
from grpc import StatusCode

from callboard.errors import (
    CallError,
    FailedPrecondition,
    Internal,
    InvalidArgs,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from callboard_firebase import Batch, ListenOptions
from callboard_local.fault_figures import Fault

from .conftest import QUICK, Listening, listening, take, until
from .listen_server import Connection, Kind, ListenServer, Script

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def served(script: Script, options: ListenOptions = QUICK) -> AsyncIterator[tuple[ListenServer, Listening]]:
    async with ListenServer(script) as server, listening(server.address, "demo", options) as opened:
        yield server, opened


def changes(batch: Batch) -> list[tuple[str, str, int]]:
    return sorted((change.kind, change.document.id, change.document.data["n"]) for change in batch.changes)


async def settled(opened: Listening, reconnects: int) -> None:
    """Wait until every watch is up to date again after so many reconnects."""
    async with asyncio.timeout(20):
        while opened.engine.stats().reconnects < reconnects or opened.engine.stats().waiting:
            await asyncio.sleep(0.01)


# -- the stream ends


@pytest.mark.fault(row=19)
@pytest.mark.parametrize(
    "status",
    [
        StatusCode.OK,
        StatusCode.CANCELLED,
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.ABORTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
    ],
    ids=lambda status: status.name,
)
async def test_a_stream_that_ends_is_resumed(status: StatusCode, fault: Fault) -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.answer(target, ["notes/a", "notes/b"], at=10, token=b"ten")
            if status is not StatusCode.OK:
                await connection.fail(status)
            return
        await connection.change(Kind.ADD, target)
        await connection.document("notes/a", [target], version=11, n=1)
        await connection.delete("notes/b", target)
        await connection.change(Kind.CURRENT, target, at=12)
        await connection.snapshot(12, b"twelve")
        await connection.silence()

    async with served(script) as (server, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        assert changes(await take(batches)) == [("added", "a", 0), ("added", "b", 0)]
        began = time.monotonic()
        batch = await take(batches)
        fault.figure(resumed_s=time.monotonic() - began)
        assert changes(batch) == [("modified", "a", 1), ("removed", "b", 0)]
        assert not batch.initial
        assert [connection.asked[0].resume_token for connection in server.connections] == [b"", b"ten"]
        assert opened.engine.stats().reconnects == 1


async def test_what_came_before_a_snapshot_is_not_believed() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.answer(target, ["notes/a"], at=10, token=b"ten")
            await connection.document("notes/a", [target], version=11, n=1)
            await connection.change(Kind.NO_CHANGE, target, token=b"eleven")
            return
        await connection.change(Kind.ADD, target)
        await connection.document("notes/a", [target], version=12, n=2)
        await connection.change(Kind.CURRENT, target, at=12)
        await connection.snapshot(12)
        await connection.silence()

    async with served(script) as (server, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        assert changes(await take(batches)) == [("modified", "a", 2)]
        assert server.connections[1].asked[0].resume_token == b"ten"


async def test_a_version_that_is_known_is_not_told_again() -> None:
    """Google's emulator sends a target's documents again on every commit."""

    async def script(connection: Connection) -> None:
        target = await connection.target()
        await connection.answer(target, ["notes/a", "notes/b"], at=10)
        for at in (11, 12):
            await connection.document("notes/a", [target], version=1, n=7)
            await connection.snapshot(at)
        await connection.document("notes/a", [target], version=1, n=7)
        await connection.document("notes/b", [target], version=13, n=1)
        await connection.snapshot(13)
        await connection.silence()

    async with served(script) as (_, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        batch = await take(batches)
        assert changes(batch) == [("modified", "b", 1)]
        assert batch.documents["notes/a"].data == {"n": 0}


async def test_a_target_that_was_being_reset_is_read_whole() -> None:
    """The others' snapshots meanwhile carry tokens that would skip what it was not sent."""

    async def script(connection: Connection) -> None:
        first, second = await connection.target(), await connection.target()
        if connection.number == 1:
            for target, name in ((first, "notes/a"), (second, "notes/b")):
                await connection.answer(target, [name], at=10, token=b"ten")
            await connection.change(Kind.RESET, first)
            await connection.document("notes/b", [second], version=11, n=1)
            await connection.snapshot(11, b"eleven")
            return
        for target in (first, second):
            await connection.change(Kind.ADD, target)
        await connection.document("notes/a", [first], version=12, n=2)
        await connection.change(Kind.CURRENT, first, second, at=12)
        await connection.snapshot(12, b"twelve")
        await connection.silence()

    async with (
        served(script) as (server, opened),
        opened.engine.watch(opened.client.document("notes/a")) as reset,
        opened.engine.watch(opened.client.document("notes/b")) as other,
    ):
        assert changes(await take(reset)) == [("added", "a", 0)]
        await until(other, lambda batch: batch.documents["notes/b"].data["n"] == 1)
        assert changes(await take(reset)) == [("modified", "a", 2)]
        assert [asked.resume_token for asked in server.connections[1].asked] == [b"", b"eleven"]


async def test_a_full_replay_repeats_nothing_and_shows_what_is_gone() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.answer(target, ["notes/a", "notes/b", "notes/c"], at=10, token=b"ten")
            return
        await connection.change(Kind.ADD, target)
        await connection.change(Kind.RESET, target)
        await connection.document("notes/a", [target], version=1)
        await connection.document("notes/b", [target], version=11, n=1)
        await connection.change(Kind.CURRENT, target, at=12)
        await connection.snapshot(12)
        await connection.silence()

    async with served(script) as (_, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        batch = await take(batches)
        assert changes(batch) == [("modified", "b", 1), ("removed", "c", 0)]
        assert sorted(batch.documents) == ["notes/a", "notes/b"]


async def test_a_replay_without_a_token_is_compared_too() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.answer(target, ["notes/a", "notes/b"], at=10)
            return
        await connection.answer(target, ["notes/a", "notes/c"], at=12)
        await connection.silence()

    async with served(script) as (server, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        assert changes(await take(batches)) == [("added", "c", 0), ("removed", "b", 0)]
        assert server.connections[1].asked[0].resume_token == b""


@pytest.mark.fault(row=20, control="within")
async def test_a_stream_refused_for_ever_is_asked_seldom(fault: Fault) -> None:
    seldom = ListenOptions(backoff_base_s=0.001, backoff_cap_s=0.002, reopens=10, reopens_window_s=60)
    often = replace(seldom, reopens=1_000)

    async def script(connection: Connection) -> None:
        await connection.fail(StatusCode.UNAVAILABLE)

    async with served(script, seldom) as (server, opened), opened.engine.watch(opened.client.document("notes/a")):
        # Four more at once; the rest of the ten are spread over the minute.
        await server.connected(5)
        # The control: without the ceiling, 100 come while the guarded engine opens none.
        async with served(script, often) as (loud, control), control.engine.watch(control.client.document("notes/a")):
            await loud.connected(100)
        assert len(server.connections) == 5
        fault.figure(asked=5, control_asked=len(loud.connections))


async def test_many_streams_that_are_refused_ask_no_more_often_than_one() -> None:
    seldom = ListenOptions(backoff_base_s=0.001, backoff_cap_s=0.002, targets_per_stream=1)

    async def script(connection: Connection) -> None:
        await connection.fail(StatusCode.UNAVAILABLE)

    async with AsyncExitStack() as stack:
        server, opened = await stack.enter_async_context(served(script, seldom))
        for number in range(5):
            await stack.enter_async_context(opened.engine.watch(opened.client.document(f"notes/{number}")))
        await server.connected(5 + 4)
        # The control: the same five streams in engines of their own, which know nothing of each other.
        loud = await stack.enter_async_context(ListenServer(script))
        for number in range(5):
            alone = await stack.enter_async_context(listening(loud.address, "demo", seldom))
            await stack.enter_async_context(alone.engine.watch(alone.client.document(f"notes/{number}")))
        await loud.connected(5 * 5)
        assert opened.engine.stats().streams == 5
        assert len(server.connections) == 5 + 4


async def test_a_server_that_was_away_is_found_again_soon() -> None:
    """The general cap would make this wait for an hour."""
    patient = replace(QUICK, backoff_base_s=3_600, backoff_cap_s=3_600, unavailable_cap_s=0.02)

    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number < 4:
            await connection.fail(StatusCode.UNAVAILABLE)
        await connection.answer(target, ["notes/a"], at=10, token=b"ten")
        await connection.silence()

    async with (
        served(script, patient) as (_, opened),
        opened.engine.watch(opened.client.collection("notes")) as batches,
    ):
        assert changes(await take(batches)) == [("added", "a", 0)]
        assert opened.engine.stats().reconnects == 3


async def test_the_backoff_outlives_the_watches_that_were_refused() -> None:
    # Two at once, and the third half a minute later.
    options = replace(QUICK, reopens=3, reopens_window_s=60)

    async def script(connection: Connection) -> None:
        await connection.fail(StatusCode.PERMISSION_DENIED)

    async with served(script, options) as (server, opened):
        for _ in range(3):
            async with opened.engine.watch(opened.client.document("notes/a")) as batches:
                if len(server.connections) < 3:
                    with pytest.raises(PermissionDenied):
                        await take(batches)
        assert len(server.connections) == 3
        assert opened.engine.stats().streams == 1


# -- the service refuses


@pytest.mark.fault(row=19)
async def test_a_refusal_of_the_service_reaches_every_watch() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.target()
            await connection.fail(StatusCode.PERMISSION_DENIED, "projects/demo: secret reasons")
        await connection.answer(target, at=10)
        await connection.silence()

    async with served(script) as (_, opened):
        async with (
            opened.engine.watch(opened.client.document("notes/a")) as one,
            opened.engine.watch(opened.client.document("notes/b")) as two,
        ):
            for batches in (one, two):
                with pytest.raises(PermissionDenied) as caught:
                    await take(batches)
                assert "secret" not in caught.value.message
                assert "secret" in str(caught.value.__cause__)
            with pytest.raises(PermissionDenied):
                await take(one)
        async with opened.engine.watch(opened.client.document("notes/a")) as batches:
            assert (await take(batches)).initial


@pytest.mark.fault(row=19)
async def test_credentials_are_renewed_before_a_watch_is_given_up() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number <= 3:
            await connection.fail(StatusCode.UNAUTHENTICATED)
        await connection.answer(target, at=10)
        await connection.silence()

    async with served(script) as (_, opened), opened.engine.watch(opened.client.document("notes/a")) as batches:
        assert (await take(batches)).initial


async def test_renewing_means_that_the_token_is_not_used_again() -> None:
    class Renewable(Credentials):
        def refresh(self, request: object) -> None:
            raise NotImplementedError

    async def script(connection: Connection) -> None:
        if connection.number == 1:
            await connection.fail(StatusCode.UNAUTHENTICATED)
        await connection.answer(await connection.target(), at=10)
        await connection.silence()

    async with served(script) as (_, opened):
        opened.client._credentials = credentials = Renewable()  # type: ignore[no-untyped-call]
        credentials.token = "stale"
        async with opened.engine.watch(opened.client.document("notes/a")) as batches:
            await take(batches)
        assert credentials.token is None


async def test_a_refusal_that_no_target_explains_drops_the_tokens_then_gives_up() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.answer(target, at=10, token=b"ten")
        elif connection.number == 2:
            await connection.answer(target, at=11)
        await connection.fail(StatusCode.INVALID_ARGUMENT)

    async with served(script) as (server, opened), opened.engine.watch(opened.client.document("notes/a")) as batches:
        await take(batches)
        with pytest.raises(InvalidArgs):
            await take(batches)
        assert [one.asked[0].resume_token for one in server.connections] == [b"", b""]


async def test_credentials_that_stay_bad_end_the_watch() -> None:
    async def script(connection: Connection) -> None:
        await connection.fail(StatusCode.UNAUTHENTICATED)

    async with served(script) as (server, opened), opened.engine.watch(opened.client.document("notes/a")) as batches:
        with pytest.raises(Unauthenticated):
            await take(batches)
        assert len(server.connections) == 4


# -- the server removes a target


@pytest.mark.fault(row=19)
@pytest.mark.parametrize(
    ("cause", "expected"),
    [(3, InvalidArgs), (5, NotFound), (7, PermissionDenied), (9, FailedPrecondition)],
)
async def test_a_target_removed_for_a_cause_ends_alone(cause: int, expected: type[CallError]) -> None:
    async def script(connection: Connection) -> None:
        first, second = await connection.target(), await connection.target()
        await connection.answer(second, at=10)
        await connection.change(Kind.REMOVE, first, cause=cause, text="secret reasons")
        await connection.document("notes/b", [second], version=11, n=1)
        await connection.snapshot(11)
        await connection.silence()

    async with served(script) as (server, opened):
        async with (
            opened.engine.watch(opened.client.document("notes/a")) as refused,
            opened.engine.watch(opened.client.document("notes/b")) as other,
        ):
            with pytest.raises(expected) as caught:
                await take(refused)
            assert "secret" not in caught.value.message
            assert (await take(other)).initial
            assert changes(await take(other)) == [("added", "b", 1)]
            assert opened.engine.stats().targets == 1
        assert len(server.connections) == 1


@pytest.mark.fault(row=19)
async def test_a_target_removed_in_passing_is_asked_again() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.answer(target, ["notes/a"], at=10, token=b"ten")
            await connection.change(Kind.REMOVE, target, cause=14)
            again = await connection.target()
            assert again != target
            await connection.answer(again, ["notes/b"], at=11)
        await connection.silence()

    async with served(script) as (server, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        assert changes(await take(batches)) == [("added", "b", 0), ("removed", "a", 0)]
        assert len(server.connections) == 1


async def test_a_target_removed_again_and_again_is_given_up() -> None:
    async def script(connection: Connection) -> None:
        while True:
            await connection.change(Kind.REMOVE, await connection.target(), cause=14)

    async with served(script) as (server, opened), opened.engine.watch(opened.client.document("notes/a")) as batches:
        with pytest.raises(Unavailable):
            await take(batches)
        assert [len(connection.asked) for connection in server.connections] == [6]


async def test_a_target_that_is_removed_for_ever_costs_the_others_nothing() -> None:
    """Its second and later questions wait for a back-off of its own; the stream goes on."""

    async def script(connection: Connection) -> None:
        steady = await connection.target()
        await connection.answer(steady, ["notes/a"], at=10)
        for n in range(1, 4):
            await connection.change(Kind.REMOVE, await connection.target(), cause=14)
            await connection.document("notes/a", [steady], version=10 + n, n=n)
            await connection.snapshot(10 + n)
        await connection.answer(await connection.target(), ["notes/b"], at=20)
        await connection.silence()

    async with (
        served(script) as (server, opened),
        opened.engine.watch(opened.client.document("notes/a")) as steady,
        opened.engine.watch(opened.client.document("notes/b")) as removed,
    ):
        assert changes(await take(removed)) == [("added", "b", 0)]
        seen = await until(steady, lambda batch: batch.documents["notes/a"].data["n"] == 3)
        assert [change.document.data["n"] for batch in seen for change in batch.changes][-1] == 3
        assert len(server.connections) == 1
        assert opened.engine.stats().reconnects == 0


async def test_a_watch_that_leaves_while_it_waits_is_not_asked_again() -> None:
    async def script(connection: Connection) -> None:
        for _ in range(2):
            await connection.change(Kind.REMOVE, await connection.target(), cause=14)
        await connection.silence()

    slow = replace(QUICK, backoff_base_s=3_600, backoff_cap_s=3_600)
    async with served(script, slow) as (_, opened):
        async with opened.engine.watch(opened.client.document("notes/a")), asyncio.timeout(20):
            [stream] = opened.engine._streams
            while not stream._later:
                await asyncio.sleep(0.01)
            [timer] = stream._later.values()
        assert timer.cancelled()


async def test_a_target_removed_for_its_token_is_asked_without() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.answer(target, ["notes/a"], at=10, token=b"ten")
            return
        await connection.change(Kind.REMOVE, target, cause=3)
        await connection.answer(await connection.target(), ["notes/b"], at=11)
        await connection.silence()

    async with served(script) as (server, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        assert changes(await take(batches)) == [("added", "b", 0), ("removed", "a", 0)]
        assert [asked.resume_token for asked in server.connections[1].asked] == [b"ten", b""]


# -- the server disagrees


@pytest.mark.fault(row=19)
async def test_a_filter_mismatch_reads_the_target_again() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        await connection.answer(target, ["notes/a", "notes/b"], at=10, token=b"ten")
        await connection.filter(target, 2)
        await connection.filter(target, 1)
        assert await connection.removal() == target
        again = await connection.target()
        await connection.answer(again, ["notes/a"], at=11)
        await connection.silence()

    async with served(script) as (server, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        assert changes(await take(batches)) == [("removed", "b", 0)]
        assert [asked.resume_token for asked in server.connections[0].asked] == [b"", b""]


async def test_a_filter_counts_what_is_not_yet_a_snapshot() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        await connection.answer(target, ["notes/a", "notes/b"], at=10)
        await connection.document("notes/a", [target], version=11, n=1)
        await connection.document("notes/c", [target], version=11, n=1)
        await connection.document("notes/d", [target], version=11, n=1)
        await connection.delete("notes/b", target)
        await connection.filter(target, 3)
        await connection.snapshot(11)
        await connection.silence()

    async with served(script) as (server, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        await take(batches)
        assert changes(await take(batches)) == [
            ("added", "c", 1),
            ("added", "d", 1),
            ("modified", "a", 1),
            ("removed", "b", 0),
        ]
        assert len(server.connections[0].asked) == 1


# -- one target breaks the stream


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (StatusCode.INVALID_ARGUMENT, InvalidArgs),
        (StatusCode.PERMISSION_DENIED, PermissionDenied),
        (StatusCode.UNKNOWN, Internal),
    ],
    ids=["permanent", "denied", "passing"],
)
async def test_a_target_that_breaks_the_stream_is_found(status: StatusCode, expected: type[CallError]) -> None:
    async def script(connection: Connection) -> None:
        while True:
            target = await connection.target()
            if connection.path() == "notes/poison":
                await connection.fail(status)
            await connection.answer(target, at=10)

    async with (
        served(script) as (_, opened),
        opened.engine.watch(opened.client.document("notes/a")) as one,
        opened.engine.watch(opened.client.document("notes/poison")) as poison,
        opened.engine.watch(opened.client.document("notes/b")) as two,
    ):
        with pytest.raises(expected):
            await take(poison)
        for batches in (one, two):
            assert (await take(batches)).initial
        # The stream takes new targets as before.
        async with opened.engine.watch(opened.client.document("notes/c")) as three:
            assert (await take(three)).initial


async def test_one_that_is_refused_while_suspects_are_asked_singly_does_not_hold_up_the_others() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.target()
            await connection.fail(StatusCode.UNKNOWN)
        await connection.change(Kind.REMOVE, target, cause=5)
        await connection.answer(await connection.target(), ["notes/b"], at=10)
        await connection.silence()

    async with (
        served(script) as (_, opened),
        opened.engine.watch(opened.client.document("notes/a")) as refused,
        opened.engine.watch(opened.client.document("notes/b")) as other,
    ):
        with pytest.raises(NotFound):
            await take(refused)
        assert changes(await take(other)) == [("added", "b", 0)]


async def test_one_that_waits_while_suspects_are_asked_singly_lets_the_others_pass_and_is_asked_once() -> None:
    paths = []

    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number == 1:
            await connection.target()
            await connection.fail(StatusCode.UNKNOWN)
        paths.append(connection.path())
        for _ in range(2):
            await connection.change(Kind.REMOVE, target, cause=14)
            target = await connection.target()
            paths.append(connection.path())
        await connection.answer(target, ["notes/b"], at=10)
        await connection.answer(await connection.target(), ["notes/a"], at=11)
        paths.append(connection.path())
        await connection.silence()

    async with (
        served(script) as (server, opened),
        opened.engine.watch(opened.client.document("notes/a")) as removed,
        opened.engine.watch(opened.client.document("notes/b")) as other,
    ):
        assert changes(await take(other)) == [("added", "b", 0)]
        assert changes(await take(removed)) == [("added", "a", 0)]
        assert paths == ["notes/a", "notes/a", "notes/b", "notes/a"]
        assert len(server.connections) == 2


async def test_a_document_that_cannot_be_decoded_ends_its_watch_alone() -> None:
    async def script(connection: Connection) -> None:
        first, second = await connection.target(), await connection.target()
        await connection.change(Kind.ADD, first)
        await connection.broken_document("notes/a", first)
        await connection.answer(second, at=10)
        await connection.silence()

    async with (
        served(script) as (_, opened),
        opened.engine.watch(opened.client.document("notes/a")) as broken,
        opened.engine.watch(opened.client.document("notes/b")) as other,
    ):
        with pytest.raises(Internal):
            await take(broken)
        assert (await take(other)).initial


async def test_a_task_that_dies_is_seen() -> None:
    async def script(connection: Connection) -> None:
        await connection.target()
        await connection.impossible_time()
        await connection.silence()

    async with served(script) as (_, opened), opened.engine.watch(opened.client.document("notes/a")) as batches:
        with pytest.raises(Internal) as caught:
            await take(batches)
        assert caught.value.__cause__ is not None
        assert opened.engine.stats().streams == 0


# -- the server says nothing


async def test_a_server_that_never_answers_is_asked_anew() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        if connection.number <= 2:
            await connection.silence()
        await connection.answer(target, at=10)
        await connection.silence()

    impatient = replace(QUICK, silence_timeout_s=0.2)
    # The control connects first and waits: without the time-out, its stream stays mute.
    async with (
        served(script, replace(QUICK, silence_timeout_s=3_600)) as (server, control),
        control.engine.watch(control.client.document("notes/a")),
    ):
        await server.connected(1)
        async with (
            listening(server.address, "demo", impatient) as opened,
            opened.engine.watch(opened.client.document("notes/a")) as batches,
        ):
            assert (await take(batches)).initial
            assert opened.engine.stats().reconnects == 1
        stats = control.engine.stats()
        assert (stats.reconnects, stats.waiting, stats.connected) == (0, 1, 0)


async def test_a_target_that_is_overlooked_is_asked_again_alone() -> None:
    async def script(connection: Connection) -> None:
        first, second = await connection.target(), await connection.target()
        await connection.answer(first, at=10)

        async def chatter() -> None:
            for at in range(11, 1_000):
                await connection.snapshot(at)
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            talking = tasks.create_task(chatter())
            assert await connection.removal() == second
            again = await connection.target()
            talking.cancel()
        await connection.answer(again, at=1_001)
        await connection.silence()

    impatient = replace(QUICK, silence_timeout_s=0.2)
    async with served(script, impatient) as (server, opened):
        async with (
            opened.engine.watch(opened.client.document("notes/a")) as answered,
            opened.engine.watch(opened.client.document("notes/b")) as overlooked,
        ):
            await take(answered)
            assert (await take(overlooked)).initial
        assert len(server.connections) == 1


async def test_a_snapshot_that_is_owed_and_never_comes_is_noticed() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        await connection.answer(target, at=10, token=b"ten")
        if connection.number == 1:
            await connection.document("notes/a", [target], version=11, n=1)
        await connection.silence()

    impatient = replace(QUICK, silence_timeout_s=0.2)
    async with (
        served(script, impatient) as (server, opened),
        opened.engine.watch(opened.client.document("notes/a")) as batches,
    ):
        await take(batches)
        second = await server.connected(2)
        await settled(opened, 1)
        assert second.asked[0].resume_token == b"ten"


async def test_a_quiet_stream_is_probed_and_a_mute_one_reopened() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        await connection.answer(target, at=10, token=b"ten")
        probe = await connection.target()
        assert connection.path() == "callboard_probe/listen"
        if connection.number == 1:
            await connection.answer(probe, at=11)
            assert await connection.removal() == probe
            await connection.change(Kind.REMOVE, await connection.target(), cause=7)  # an answer too
            await connection.target()  # the third probe, unanswered
        await connection.silence()

    probing = replace(QUICK, probe_interval_s=0.1, silence_timeout_s=0.2)
    async with (
        served(script, probing) as (server, opened),
        opened.engine.watch(opened.client.document("notes/a")) as batches,
        listening(server.address, "demo", replace(probing, probe_interval_s=None)) as control,
        control.engine.watch(control.client.document("notes/a")) as quiet,
    ):
        await take(batches)
        await take(quiet)
        await settled(opened, 1)
        assert opened.engine.stats().targets == 1
        assert control.engine.stats().reconnects == 0


# -- the protocol's corners


async def test_what_concerns_nobody_is_ignored() -> None:
    async def script(connection: Connection) -> None:
        target = await connection.target()
        await connection.snapshot(5)
        await connection.change(Kind.CURRENT, 77, at=6)
        await connection.document("notes/x", [77], version=1)
        await connection.filter(77, 3)
        await connection.change(Kind.REMOVE, 77)
        await connection.answer(target, ["notes/a"], at=10)
        await connection.snapshot(11)
        await connection.document("notes/b", [target], version=12, n=1)
        await connection.snapshot(12)
        await connection.silence()

    async with served(script) as (_, opened), opened.engine.watch(opened.client.collection("notes")) as batches:
        assert changes(await take(batches)) == [("added", "a", 0)]
        assert changes(await take(batches)) == [("added", "b", 1)]


async def test_one_document_change_can_concern_several_targets() -> None:
    async def script(connection: Connection) -> None:
        first, second = await connection.target(), await connection.target()
        await connection.change(Kind.ADD, first, second)
        await connection.document("notes/a", [first, second], version=1)
        await connection.change(Kind.CURRENT)
        await connection.snapshot(10)
        await connection.silence()

    async with (
        served(script) as (_, opened),
        opened.engine.watch(opened.client.collection("notes")) as one,
        opened.engine.watch(opened.client.document("notes/a")) as two,
    ):
        a, b = await take(one), await take(two)
        assert a.documents["notes/a"] is b.documents["notes/a"]


async def test_the_channel_closed_under_the_engine_is_an_error_not_a_hang() -> None:
    async def script(connection: Connection) -> None:
        await connection.answer(await connection.target(), at=10)
        await connection.silence()

    async with served(script) as (_, opened), opened.engine.watch(opened.client.document("notes/a")) as batches:
        await take(batches)
        await opened.engine._lines.close()
        with pytest.raises(Internal):
            await take(batches)

"""The listen engine against a Firestore server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core.exceptions import Cancelled
from google.api_core.retry import if_exception_type
from google.api_core.retry_async import AsyncRetry
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.vector import Vector

from callboard.errors import InvalidArgs, Unavailable
from callboard_firebase import Batch, Document, ListenEngine, ListenOptions
from callboard_firebase.channel import Line
from callboard_local import FaultProxy
from callboard_local.fault_figures import Fault
from callboard_local.firestore_process import FirestoreProcess

from .conftest import QUICK, Listening, listening, take, until

pytestmark = pytest.mark.anyio


def kinds(batch: Batch) -> list[tuple[str, str]]:
    return sorted((change.kind, change.document.id) for change in batch.changes)


async def test_the_first_batch_holds_the_whole_result(firestore: Listening) -> None:
    notes = firestore.client.collection("clients/u/notes")
    for name in ("a", "b"):
        await notes.document(name).set({"n": 1})
    async with firestore.engine.watch(notes) as batches:
        batch = await take(batches)
    assert batch.initial
    assert kinds(batch) == [("added", "a"), ("added", "b")]
    assert sorted(batch.documents) == ["clients/u/notes/a", "clients/u/notes/b"]
    document = batch.documents["clients/u/notes/a"]
    assert (document.path, document.id, document.data) == ("clients/u/notes/a", "a", {"n": 1})
    assert document.update_time <= batch.read_time


async def test_an_empty_collection_and_a_missing_document_answer_too(firestore: Listening) -> None:
    async with (
        firestore.engine.watch(firestore.client.collection("none")) as collection,
        firestore.engine.watch(firestore.client.document("none/such")) as document,
    ):
        for batches in (collection, document):
            batch = await take(batches)
            assert (batch.initial, batch.changes, dict(batch.documents)) == (True, (), {})


async def test_later_batches_hold_what_changed(firestore: Listening) -> None:
    notes = firestore.client.collection("notes")
    await notes.document("old").set({"n": 0})
    async with firestore.engine.watch(notes) as batches:
        first = await take(batches)
        await notes.document("new").set({"n": 1})
        assert kinds(await take(batches)) == [("added", "new")]
        await notes.document("new").update({"n": 2})
        batch = await take(batches)
        assert kinds(batch) == [("modified", "new")]
        assert batch.changes[0].document.data == {"n": 2}
        assert not batch.initial
        await notes.document("new").delete()
        batch = await take(batches)
        assert kinds(batch) == [("removed", "new")]
        assert batch.changes[0].document.data == {"n": 2}
        assert list(batch.documents) == ["notes/old"]
    assert list(first.documents) == ["notes/old"]


async def test_leaving_a_filter_is_a_removal(firestore: Listening) -> None:
    notes = firestore.client.collection("notes")
    await notes.document("a").set({"read": False})
    unread = notes.where(filter=FieldFilter("read", "==", False))
    async with firestore.engine.watch(unread) as batches:
        await take(batches)
        await notes.document("a").update({"read": True})
        assert kinds(await take(batches)) == [("removed", "a")]


async def test_one_commit_is_one_batch(firestore: Listening) -> None:
    notes = firestore.client.collection("notes")
    async with firestore.engine.watch(notes) as batches:
        await take(batches)
        write = firestore.client.batch()
        for number in range(5):
            write.set(notes.document(str(number)), {"n": number})
        await write.commit()
        assert len((await take(batches)).changes) == 5


async def test_references_and_maps_are_decoded(firestore: Listening) -> None:
    note = firestore.client.document("notes/a")
    elsewhere = AsyncClient(project="another", credentials=firestore.client._credentials).document("x/y")
    vector = Vector([1.0, 2.0])
    await note.set({"own": note, "other": {"list": [elsewhere]}, "vector": vector, "one": {"key": 1}})
    async with firestore.engine.watch(note) as batches:
        data = (await take(batches)).documents["notes/a"].data
    assert data["own"] == note
    assert (data["vector"], data["one"]) == (vector, {"key": 1})
    assert data["other"] == {"list": ["projects/another/databases/(default)/documents/x/y"]}


async def test_what_cannot_be_listened_to_is_refused(firestore: Listening) -> None:
    last = firestore.client.collection("notes").order_by("n").limit_to_last(2)
    with pytest.raises(InvalidArgs):
        async with firestore.engine.watch(last):
            pass
    with pytest.raises(TypeError):
        async with firestore.engine.watch(firestore.client):  # type: ignore[arg-type]
            pass


async def test_a_bad_target_ends_alone(firestore: Listening) -> None:
    notes = firestore.client.collection("notes")
    async with (
        firestore.engine.watch(notes) as good,
        firestore.engine.watch(firestore.client.document("a/..")) as bad,
    ):
        await take(good)
        with pytest.raises(InvalidArgs) as caught:
            await take(bad)
        assert caught.value.message == "Firebase refuses the request: an argument is not valid."
        await notes.document("a").set({})
        assert kinds(await take(good)) == [("added", "a")]


async def test_many_targets_share_a_stream_without_threads(firestore: Listening) -> None:
    inbox = firestore.client.collection("inbox")
    async with firestore.engine.watch(inbox) as first:
        await take(first)
        threads = threading.active_count()
        async with AsyncExitStack() as stack:
            watches = [
                await stack.enter_async_context(firestore.engine.watch(inbox.document(str(number))))
                for number in range(499)
            ]
            for batches in watches:
                assert (await take(batches)).initial
            assert threading.active_count() == threads
            stats = firestore.engine.stats()
            assert (stats.streams, stats.connected, stats.targets, stats.waiting) == (1, 1, 500, 0)
            await inbox.document("17").set({"n": 1})
            assert kinds(await take(watches[17])) == [("added", "17")]
            assert kinds(await take(first)) == [("added", "17")]
        assert firestore.engine.stats().targets == 1
        await inbox.document("18").set({"n": 1})
        assert kinds(await take(first)) == [("added", "18")]


async def test_targets_overflow_into_further_streams(firestore_address: str, firestore_project: str) -> None:
    one_each = ListenOptions(targets_per_stream=1)
    async with listening(firestore_address, firestore_project, one_each) as opened:
        note = opened.client.document("notes/a")
        async with (
            opened.engine.watch(note) as one,
            opened.engine.watch(note) as two,
            opened.engine.watch(note) as three,
        ):
            for batches in (one, two, three):
                await take(batches)
            assert opened.engine.stats().streams == 3
            await note.set({"n": 1})
            for batches in (one, two, three):
                assert kinds(await take(batches)) == [("added", "a")]


async def test_a_watch_can_come_and_go_while_another_lives(firestore: Listening) -> None:
    notes, other = firestore.client.collection("notes"), firestore.client.collection("other")
    async with firestore.engine.watch(notes) as lasting:
        await take(lasting)
        for number in range(5):
            async with firestore.engine.watch(other) as passing:
                assert len((await take(passing)).documents) == number
                await other.document(str(number)).set({})
                assert len((await take(passing)).documents) == number + 1
        await notes.document("a").set({})
        assert kinds(await take(lasting)) == [("added", "a")]
    assert firestore.engine.stats().reconnects == 0


async def test_an_engine_without_watches_comes_back(firestore: Listening) -> None:
    note = firestore.client.document("notes/a")
    for number in range(3):
        async with firestore.engine.watch(note) as batches:
            assert (await take(batches)).initial
        # Google's emulator answers a write beside a stream that ends with CANCELLED now and then.
        await note.set({"n": number}, retry=AsyncRetry(if_exception_type(Cancelled)))
    assert firestore.engine.stats().streams == 1


async def test_a_slow_consumer_finds_the_latest_state(firestore: Listening) -> None:
    notes = firestore.client.collection("notes")
    await notes.document("steady").set({"n": 0})
    async with firestore.engine.watch(notes) as slow, firestore.engine.watch(notes) as quick:
        await take(slow)
        await take(quick)
        for number in range(20):
            await notes.document("a").set({"n": number})
        await notes.document("passing").set({})
        await notes.document("passing").delete()
        await notes.document("steady").delete()
        await until(quick, lambda batch: "notes/steady" not in batch.documents)
        batch = await take(slow)
        assert kinds(batch) == [("added", "a"), ("removed", "passing"), ("removed", "steady")]
        assert batch.changes[0].document.data in ({"n": 19}, {"n": 0})
        await notes.document("a").set({"n": 99})
        assert kinds(await take(slow)) == [("modified", "a")]


async def test_closing_the_engine_ends_its_watches(firestore_address: str, firestore_project: str) -> None:
    async with listening(firestore_address, firestore_project) as opened:
        engine = ListenEngine(opened.client)
        async with engine, engine.watch(opened.client.document("a/b")) as batches:
            await take(batches)
            await engine.__aexit__(None, None, None)
            with pytest.raises(Unavailable):
                await take(batches)
        with pytest.raises(Unavailable):
            async with engine.watch(opened.client.document("a/b")):
                pass


async def test_closing_that_is_cancelled_leaves_no_connection(firestore_address: str, firestore_project: str) -> None:
    async with listening(firestore_address, firestore_project) as opened:
        engine = await ListenEngine(opened.client).__aenter__()
        async with engine.watch(opened.client.document("a/b")) as batches:
            await take(batches)
            [line] = engine._lines._lines
            transport: Any = (await line.api()).transport
            closing = asyncio.create_task(engine.__aexit__(None, None, None))
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert transport.grpc_channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_one_task_reads_a_watch(firestore: Listening) -> None:
    async with firestore.engine.watch(firestore.client.document("a/b")) as batches:
        await take(batches)
        waiting = asyncio.ensure_future(anext(batches))  # noqa: TID251 - cancelled and awaited below
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await anext(batches)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await firestore.client.document("a/b").set({})
        assert kinds(await take(batches)) == [("added", "b")]


# -- the server goes away and comes back


async def test_a_killed_server_loses_no_change_and_repeats_none(tmp_path: Path) -> None:
    with FirestoreProcess(data=tmp_path / "firestore.sqlite") as server:
        async with listening(server.address, "demo") as opened, listening(server.address, "demo") as writer:
            notes = opened.client.collection("notes")
            for name in ("kept", "changed", "deleted"):
                await notes.document(name).set({"n": 0})
            async with opened.engine.watch(notes) as batches:
                await take(batches)
                await server.kill()
                await server.restart()
                await _write_until_accepted(writer.client)
                seen = await until(batches, lambda batch: "notes/added" in batch.documents)
                changes = [kind for batch in seen for kind in kinds(batch)]
                assert sorted(changes) == [("added", "added"), ("modified", "changed"), ("removed", "deleted")]
                assert not any(batch.initial for batch in seen)
                assert opened.engine.stats().reconnects >= 1


async def test_a_history_of_writes_and_crashes_adds_up(tmp_path: Path) -> None:
    """Every batch follows from the one before by its changes; no version comes twice; the end is the server's state."""
    with FirestoreProcess(data=tmp_path / "firestore.sqlite") as server:
        async with listening(server.address, "demo") as opened, listening(server.address, "demo") as writer:
            notes = opened.client.collection("notes")

            async def write() -> None:
                for number in range(120):
                    if number in (40, 80):
                        await server.kill()
                        await server.restart()
                    note = writer.client.collection("notes").document(str(number % 7))
                    if number % 5 == 4:
                        await note.delete(timeout=15)
                    else:
                        await note.set({"n": number}, timeout=15)
                await writer.client.collection("notes").document("end").set({}, timeout=15)

            async with opened.engine.watch(notes) as batches, asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                seen = await until(batches, lambda batch: "notes/end" in batch.documents)

            assert opened.engine.stats().reconnects >= 2
            state: dict[str, Document] = {}
            versions = set()
            for batch in seen:
                for change in batch.changes:
                    document = change.document
                    assert (document.path in state) is (change.kind != "added")
                    if change.kind == "removed":
                        del state[document.path]
                        continue
                    state[document.path] = document
                    assert (document.path, document.update_time) not in versions
                    versions.add((document.path, document.update_time))
                assert state == dict(batch.documents)
            stored = {snapshot.id: snapshot.to_dict() async for snapshot in notes.stream()}
            assert {document.id: document.data for document in state.values()} == stored


async def test_what_a_restarted_server_has_lost_is_removed() -> None:
    with FirestoreProcess() as server:
        async with listening(server.address, "demo") as opened:
            note = opened.client.document("notes/a")
            await note.set({})
            async with opened.engine.watch(note) as batches:
                await take(batches)
                await server.kill()
                await server.restart()
                assert kinds(await take(batches)) == [("removed", "a")]


async def _write_until_accepted(client: AsyncClient) -> None:
    notes = client.collection("notes")
    write = client.batch()
    write.set(notes.document("changed"), {"n": 1})
    write.delete(notes.document("deleted"))
    write.set(notes.document("added"), {"n": 1})
    await write.commit(timeout=15)


@pytest.mark.fault(row=22)
async def test_a_frozen_server_is_noticed_and_found_again(tmp_path: Path) -> None:
    with FirestoreProcess(data=tmp_path / "firestore.sqlite") as server:
        async with (
            listening(server.address, "demo", replace(QUICK, silence_timeout_s=0.2, probe_interval_s=0.2)) as opened,
            opened.engine.watch(opened.client.document("notes/a")) as batches,
        ):
            await take(batches)
            server.pause()
            async with asyncio.timeout(20):
                while opened.engine.stats().reconnects == 0:
                    await asyncio.sleep(0.01)
            server.resume()
            await opened.client.document("notes/a").set({"n": 1}, timeout=10)
            assert kinds(await take(batches)) == [("added", "a")]


# -- 100 streams on a connection, as Google's servers allow


@pytest.mark.fault(row=21, control="within")
async def test_streams_are_spread_over_connections(firestore_project: str, fault: Fault) -> None:
    """The control puts 101 streams on one connection: the last never answers."""
    crowded = ListenOptions(targets_per_stream=1, streams_per_connection=1_000)
    spread = ListenOptions(targets_per_stream=1)
    with FirestoreProcess(max_streams=100) as server:
        async with (
            listening(server.address, firestore_project, crowded) as control,
            listening(server.address, firestore_project, spread) as opened,
            AsyncExitStack() as stack,
        ):
            for number in range(101):
                await watching(stack, control, number)
            await connected(control, 100)
            for batches in [await watching(stack, opened, number) for number in range(1_000)]:
                await take(batches)
            assert opened.engine.stats().connected == 1_000
            assert control.engine.stats().connected == 100
            # Reads have the client's own connection: no number of listeners stops them.
            began = time.monotonic()
            for client in (opened.client, control.client):
                assert not (await client.document("many/1").get(timeout=10)).exists
            fault.figure(delivered=1_000, read_s=(time.monotonic() - began) / 2, control_answered="100 of 101")


async def connected(opened: Listening, streams: int) -> None:
    """Wait until so many streams have been answered."""
    async with asyncio.timeout(20):
        while opened.engine.stats().connected < streams:
            await asyncio.sleep(0.01)


async def watching(stack: AsyncExitStack, opened: Listening, number: int) -> AsyncIterator[Batch]:
    return await stack.enter_async_context(opened.engine.watch(opened.client.document(f"many/{number}")))


@pytest.mark.parametrize(
    "figures", [{"targets_per_stream": 0}, {"streams_per_connection": 0}, {"silence_timeout_s": 0}]
)
def test_figures_that_cannot_work_are_refused(figures: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ListenOptions(**figures)


# -- a connection that is open and dead


@pytest.mark.fault(row=22, control="within")
async def test_a_half_open_connection_is_left_for_a_new_one(firestore_address: str, firestore_project: str) -> None:
    """The control asks again and again, as often as it likes, on the connection that it has."""
    host, _, port = firestore_address.rpartition(":")
    impatient = replace(QUICK, silence_timeout_s=0.2, probe_interval_s=0.2)

    async def stay(line: Line) -> Line:
        return line

    async with (
        FaultProxy(host, int(port)) as proxy,
        listening(proxy.address, firestore_project, impatient) as opened,
        listening(proxy.address, firestore_project, impatient) as control,
        listening(firestore_address, firestore_project) as writer,
        opened.engine.watch(opened.client.document("notes/a")) as batches,
        control.engine.watch(control.client.document("notes/a")) as stuck,
    ):
        control.engine._lines.exchange = stay  # type: ignore[method-assign]
        await take(batches)
        await take(stuck)
        proxy.lose()
        await writer.client.document("notes/a").set({"n": 1})
        assert kinds(await take(batches)) == [("added", "a")]
        reconnects = control.engine.stats().reconnects
        async with asyncio.timeout(20):
            while control.engine.stats().reconnects < reconnects + 3:
                await asyncio.sleep(0.01)
        assert control.engine.stats().waiting == 1
        assert len(opened.engine._lines._lines) == 1  # the dead one is closed

"""What the embedded Firestore has beyond the shared contract: limits, resume tokens, persistence, faults."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import DeadlineExceeded, MethodNotImplemented, NotFound, ServiceUnavailable
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.types import TargetChange

from callboard_local import FirestoreProcess, PortInUseError
from callboard_local.firestore import FirestoreServer
from callboard_local.firestore.database import Database
from callboard_local.firestore.errors import ResourceExhaustedError
from callboard_local.firestore.messages import ListenRequest, StructuredQuery, Write
from callboard_local.firestore.streams import ListenStream

pytestmark = pytest.mark.anyio

Connect = Callable[[str], AsyncClient]
ListenOn = Callable[[AsyncClient], Any]


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connect]:
    """Makes clients of the server at an address."""
    clients: list[AsyncClient] = []

    def make(address: str) -> AsyncClient:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        clients.append(AsyncClient(project="own"))
        return clients[-1]

    yield make
    for client in clients:
        await client._firestore_api.transport.close()


@pytest.fixture
async def client(connect: Connect) -> AsyncIterator[AsyncClient]:
    async with FirestoreServer() as server:
        yield connect(server.address)


async def test_the_hundred_and_first_stream_of_a_connection_waits(connect: Connect, listen_on: ListenOn) -> None:
    async with FirestoreServer() as server:
        client = connect(server.address)
        streams = [listen_on(client) for _ in range(100)]
        for stream in streams:
            stream.add_documents("c/d")
            await stream.until(bool)
        with pytest.raises(DeadlineExceeded):
            await client.document("c/d").get(timeout=0.5, retry=None)
        waiting = listen_on(client)
        waiting.add_documents("c/d")
        await streams[0].close()
        await waiting.until(bool)


async def test_more_streams_when_more_are_allowed(connect: Connect, listen_on: ListenOn) -> None:
    async with FirestoreServer(max_streams=200) as server:
        client = connect(server.address)
        streams = [listen_on(client) for _ in range(101)]
        for stream in streams:
            stream.add_documents("c/d")
        for stream in streams:
            await stream.until(bool)
        assert not (await client.document("c/d").get()).exists


async def test_a_resumed_query_sends_what_was_missed_and_nothing_else(client: AsyncClient, listen_on: ListenOn) -> None:
    for name in "abc":
        await client.document(f"c/{name}").set({"n": 1})
    query = client.collection("c")._query()
    stream = listen_on(client)
    stream.add_query(query)
    before = (await stream.until(bool))[1]
    await stream.close()
    await client.document("c/a").delete()
    await client.document("c/b").set({"n": 2})
    again = listen_on(client)
    target = again.add_query(query, resume_token=stream.resume_token)
    again.assume(target, before)
    await again.until(lambda state: state == {target: {"c/b": {"n": 2}, "c/c": {"n": 1}}})
    changes = [message.target_change.target_change_type for message in again.messages]
    assert TargetChange.TargetChangeType.RESET not in changes
    sent = [message.document_change.document.name for message in again.messages if message.document_change.target_ids]
    assert [name.rpartition("/")[2] for name in sent] == ["b"]


async def test_resumed_documents_send_what_was_missed(client: AsyncClient, listen_on: ListenOn) -> None:
    await client.document("c/a").set({"n": 1})
    stream = listen_on(client)
    stream.add_documents("c/a", "c/b")
    await stream.until(bool)
    await stream.close()
    again = listen_on(client)
    again.add_documents("c/a", "c/b", resume_token=stream.resume_token)
    await again.until(bool)
    assert not any(message.WhichOneof("response_type") == "document_change" for message in again.messages)


async def test_a_document_of_several_targets_is_sent_once(client: AsyncClient, listen_on: ListenOn) -> None:
    stream = listen_on(client)
    targets = {stream.add_query(client.collection("c")._query()), stream.add_documents("c/a")}
    await stream.until(lambda state: len(state) == 2)
    await client.document("c/a").set({"n": 1})
    await stream.until(lambda state: all(state.values()))
    changes = [message.document_change for message in stream.messages if message.HasField("document_change")]
    assert [set(change.target_ids) for change in changes] == [targets]


async def test_a_target_that_selects_fields_gets_these_alone(client: AsyncClient, listen_on: ListenOn) -> None:
    stream = listen_on(client)
    some = stream.add_query(client.collection("c").select(["a"]))
    whole = stream.add_query(client.collection("c")._query())
    await stream.until(lambda state: len(state) == 2)
    await client.document("c/d").set({"a": 1, "b": 2})
    await stream.until(lambda state: state == {some: {"c/d": {"a": 1}}, whole: {"c/d": {"a": 1, "b": 2}}})


async def test_a_target_for_once_leaves_by_itself(client: AsyncClient, listen_on: ListenOn) -> None:
    await client.document("c/a").set({"n": 1})
    stream = listen_on(client)
    target = stream.add_query(client.collection("c")._query(), once=True)
    await stream.until_true(lambda: target in stream.removed)
    assert stream.snapshots == [{target: {"c/a": {"n": 1}}}]


async def test_the_server_chooses_an_id_for_a_target_without_one(client: AsyncClient, listen_on: ListenOn) -> None:
    stream = listen_on(client)
    stream.add_query(client.collection("c")._query(), target_id=0)
    assert list(await stream.until(bool)) == [1]


async def test_a_bad_query_removes_its_target_alone(client: AsyncClient, listen_on: ListenOn) -> None:
    stream = listen_on(client)
    bad = stream.add_query(client.collection("c").limit(-1))
    good = stream.add_query(client.collection("c")._query())
    await stream.until(lambda state: state == {good: {}})
    assert stream.removed == {bad: "limit is negative"}


async def test_a_commit_wakes_one_of_two_thousand_targets(client: AsyncClient, listen_on: ListenOn) -> None:
    stream = listen_on(client)
    targets = [stream.add_query(client.collection(f"users/{user}/jobs")._query()) for user in range(2000)]
    await stream.until(lambda state: len(state) == 2000)
    seen = len(stream.messages)
    await client.document("users/7/jobs/a").set({"n": 1})
    await stream.until(lambda state: state[targets[7]] == {"users/7/jobs/a": {"n": 1}})
    assert len(stream.messages) == seen + 2, "the change, and that the stream is consistent"


async def test_a_client_that_does_not_read_loses_its_stream() -> None:
    database = Database("projects/p/databases/d")
    stream = ListenStream(database, max_waiting=10)
    request = ListenRequest(database=database.name)
    request.add_target.query.parent = database.root
    selector = StructuredQuery.CollectionSelector(collection_id="c")
    request.add_target.query.structured_query.from_.append(selector)
    stream.handle(request)
    for number in range(10):
        write = Write()
        write.update.name = f"{database.root}/c/d{number}"
        database.commit([write])
    with pytest.raises(ResourceExhaustedError):
        async for _ in stream.responses():
            pass


async def test_calls_that_the_client_library_never_makes(client: AsyncClient) -> None:
    api, root = client._firestore_api, f"{client._database_string}/documents"
    made = await api.create_document(
        request={"parent": root, "collection_id": "c", "document_id": "d", "document": {"fields": {}}}
    )
    assert made.name == f"{root}/c/d"
    await api.update_document(request={"document": {"name": made.name, "fields": {"n": {"integer_value": 1}}}})
    assert (await api.get_document(request={"name": made.name})).fields["n"].integer_value == 1
    await api.delete_document(request={"name": made.name})
    with pytest.raises(NotFound):
        await api.get_document(request={"name": made.name})


async def test_what_the_server_cannot_do_is_said(client: AsyncClient) -> None:
    with pytest.raises(MethodNotImplemented):
        [part async for part in client.collection_group("c").get_partitions(2)]


async def test_a_taken_port_is_named() -> None:
    async with FirestoreServer() as server:
        with pytest.raises(PortInUseError, match=str(server.port)):
            await FirestoreProcess(server.port).__aenter__()


async def test_a_file_keeps_the_documents_over_kill_and_restart(
    connect: Connect, listen_on: ListenOn, tmp_path: Path
) -> None:
    async with FirestoreProcess(data=tmp_path / "firestore.sqlite") as server:
        client = connect(server.address)
        for name in "ab":
            await client.document(f"c/{name}").set({"n": 1, "m": {"x": [1.5, None]}})
        await client.document("c/b").delete()
        before = await client.document("c/a").get()
        stream = listen_on(client)
        stream.add_query(client.collection("c")._query())
        await stream.until(bool)
        await server.kill()
        with pytest.raises(ServiceUnavailable):
            await stream.ended()
        await server.restart()
        after = await client.document("c/a").get()
        assert (after.to_dict(), after.update_time) == (before.to_dict(), before.update_time)
        assert [snapshot.id async for snapshot in client.collection("c").stream()] == ["a"]
        again = listen_on(client)
        again.add_query(client.collection("c")._query(), resume_token=stream.resume_token)
        await again.until(lambda state: list(state[1]) == ["c/a"])
        kinds = [message.target_change.target_change_type for message in again.messages]
        assert TargetChange.TargetChangeType.RESET in kinds, "a token from before the restart is worth nothing"


async def test_memory_forgets_at_a_restart(connect: Connect) -> None:
    async with FirestoreProcess() as server:
        client = connect(server.address)
        await client.document("c/a").set({"n": 1})
        await server.restart()
        assert not (await client.document("c/a").get()).exists


async def test_a_paused_server_answers_when_resumed(connect: Connect) -> None:
    async with FirestoreProcess() as server:
        client = connect(server.address)
        await client.document("c/a").set({"n": 1})
        server.pause()
        with pytest.raises(DeadlineExceeded):
            await client.document("c/a").get(timeout=0.3, retry=None)
        server.resume()
        assert (await client.document("c/a").get()).exists


async def test_stopping_ends_open_streams(connect: Connect, listen_on: ListenOn) -> None:
    async with FirestoreServer() as server:
        stream = listen_on(connect(server.address))
        stream.add_documents("c/d")
        await stream.until(bool)
    with pytest.raises(ServiceUnavailable):
        await asyncio.wait_for(stream.ended(), 5)

"""Transactions that fight for the same documents.

Only on the embedded server, which finds conflicts at the commit as the production service does for clients of
its optimistic mode. Google's emulator locks pessimistically: twenty at once take it a quarter of a minute.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.api_core.exceptions import Aborted
from google.cloud import firestore
from google.cloud.firestore import AsyncClient, AsyncTransaction, FieldFilter

from callboard_local.firestore import FirestoreServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    async with FirestoreServer() as server:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", server.address)
        client = AsyncClient(project="contention")
        yield client
        await client._firestore_api.transport.close()


async def test_no_update_is_lost(client: AsyncClient) -> None:
    counter = client.document("c/counter")
    await counter.set({"n": 0})

    @firestore.async_transactional
    async def add_one(transaction: AsyncTransaction) -> None:
        snapshot = await counter.get(transaction=transaction)
        transaction.update(counter, {"n": snapshot.get("n") + 1})

    await asyncio.gather(*(add_one(client.transaction(max_attempts=100)) for _ in range(40)))
    assert (await counter.get()).get("n") == 40


async def test_without_a_transaction_updates_are_lost(client: AsyncClient) -> None:
    counter = client.document("c/counter")
    await counter.set({"n": 0})
    read = asyncio.Barrier(10)

    async def add_one() -> None:
        snapshot = await counter.get()
        await read.wait()
        await counter.update({"n": snapshot.get("n") + 1})

    await asyncio.gather(*(add_one() for _ in range(10)))
    assert (await counter.get()).get("n") == 1


async def test_a_transaction_sees_one_moment_and_is_aborted_when_it_has_passed(client: AsyncClient) -> None:
    first, second = client.document("c/a"), client.document("c/b")
    await first.set({"n": 1})
    await second.set({"n": 1})
    transaction = client.transaction()
    await transaction._begin()
    assert (await first.get(transaction=transaction)).get("n") == 1
    await first.set({"n": 2})
    await second.set({"n": 2})
    assert (await second.get(transaction=transaction)).get("n") == 1
    transaction.set(client.document("c/c"), {"n": 1})
    with pytest.raises(Aborted):
        await transaction._commit()
    assert not (await client.document("c/c").get()).exists


async def test_a_document_that_appears_in_a_query_aborts(client: AsyncClient) -> None:
    transaction = client.transaction()
    await transaction._begin()
    query = client.collection("c").where(filter=FieldFilter("n", "==", 1))
    assert [snapshot.id async for snapshot in query.stream(transaction=transaction)] == []
    await client.document("c/new").set({"n": 1})
    transaction.set(client.document("c/other"), {"n": 5})
    with pytest.raises(Aborted):
        await transaction._commit()


async def test_a_document_that_appears_elsewhere_does_not_abort(client: AsyncClient) -> None:
    transaction = client.transaction()
    await transaction._begin()
    query = client.collection("c").where(filter=FieldFilter("n", "==", 1))
    assert [snapshot.id async for snapshot in query.stream(transaction=transaction)] == []
    await client.document("c/new").set({"n": 2})
    transaction.set(client.document("c/other"), {"n": 5})
    await transaction._commit()
    assert (await client.document("c/other").get()).exists

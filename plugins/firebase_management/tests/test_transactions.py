"""Transactions on both Firestore servers: repeated when they lose, rolled back when they fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.async_transaction import AsyncTransaction

from callboard import Aborted
from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management import transactions as module
from callboard_firebase_management.transactions import in_transaction, read_in
from callboard_local import FirestoreProcess

pytestmark = pytest.mark.anyio


async def add_one(client: AsyncClient, path: str) -> int:
    reference = client.document(path)

    async def work(transaction: AsyncTransaction) -> int:
        [fields] = await read_in(transaction, reference)
        count = int((fields or {}).get("n", 0)) + 1
        transaction.set(reference, {"n": count})
        return count

    return await in_transaction(client, work)


async def test_read_then_write(client: AsyncClient, stored: Any) -> None:
    assert [await add_one(client, "c/d") for _ in range(3)] == [1, 2, 3]
    assert await stored("c/d") == {"n": 3}


async def test_many_documents_and_those_that_are_missing(client: AsyncClient) -> None:
    await client.document("c/a").set({"n": 1})
    references = [client.document(path) for path in ("c/b", "c/a")]

    async def work(transaction: AsyncTransaction) -> Any:
        return await read_in(transaction, *references)

    assert await in_transaction(client, work) == (None, {"n": 1})


async def test_concurrent_ones_lose_nothing(
    client: AsyncClient, stored: Any, firestore_address: str, firestore_server: FirestoreProcess
) -> None:
    at_once = 8 if firestore_address == firestore_server.address else 2  # Google's emulator takes seconds for two
    assert sorted(await asyncio.gather(*(add_one(client, "c/d") for _ in range(at_once)))) == [*range(1, at_once + 1)]
    assert await stored("c/d") == {"n": at_once}


async def test_one_that_is_always_aborted_gives_up(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    runs = 0

    async def work(transaction: AsyncTransaction) -> None:
        nonlocal runs
        runs += 1
        raise Aborted

    with pytest.raises(Aborted):
        await in_transaction(client, work)
    assert runs == 3


async def test_an_error_rolls_back_and_passes_as_it_is(client: AsyncClient, stored: Any) -> None:
    reference = client.document("c/d")

    async def work(transaction: AsyncTransaction) -> None:
        await read_in(transaction, reference)
        transaction.set(reference, {"n": 1})
        raise LookupError

    with pytest.raises(LookupError):
        await in_transaction(client, work)
    assert await stored("c/d") is None
    assert await add_one(client, "c/d") == 1  # no lock was left behind


async def test_nobody_there(make_service: Any, firestore_project: str) -> None:
    async with FirestoreProcess() as firestore:
        service: FirebaseManagement = make_service(
            GOOGLE_PROJECT_ID=firestore_project, FIRESTORE_EMULATOR_HOST=firestore.address
        )
        await service.open()
        assert await add_one(service.client, "c/d") == 1
        await firestore.kill()
        # Google's client dials for up to a minute; who cannot wait cancels, and hears of nothing else.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await add_one(service.client, "c/d")
        await firestore.restart()
        assert await add_one(service.client, "c/d") == 1  # its documents lived in memory

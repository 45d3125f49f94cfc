"""Transactions with Google's clients. Those with contention are in `test_firestore_contention.py`."""

# mypy: disable-error-code="no-untyped-call"

from typing import Any

import pytest
from google.api_core.exceptions import AlreadyExists, InvalidArgument
from google.cloud import firestore
from google.cloud.firestore import AsyncClient, AsyncTransaction, Client, FieldFilter, Transaction

pytestmark = pytest.mark.anyio


def test_read_modify_write(client: Client) -> None:
    document = client.document("c/d")
    document.set({"n": 1})

    @firestore.transactional
    def add_one(transaction: Transaction) -> int:
        n: int = document.get(transaction=transaction).get("n")
        transaction.update(document, {"n": n + 1})
        return n

    assert add_one(client.transaction()) == 1
    assert document.get().to_dict() == {"n": 2}


def test_a_query_and_a_write(client: Client) -> None:
    for name in "abc":
        client.document(f"c/{name}").set({"done": name == "a"})

    @firestore.transactional
    def finish_all(transaction: Transaction) -> int:
        query = client.collection("c").where(filter=FieldFilter("done", "==", False))
        open_ones = list(query.stream(transaction=transaction))
        for snapshot in open_ones:
            transaction.update(snapshot.reference, {"done": True})
        return len(open_ones)

    assert finish_all(client.transaction()) == 2
    assert finish_all(client.transaction()) == 0


def test_an_exception_rolls_back(client: Client) -> None:
    @firestore.transactional
    def fail(transaction: Transaction) -> None:
        transaction.set(client.document("c/d"), {"n": 1})
        raise LookupError("on purpose")

    with pytest.raises(LookupError):
        fail(client.transaction())
    assert not client.document("c/d").get().exists


def test_get_all_within_a_transaction(client: Client) -> None:
    client.document("c/a").set({"n": 1})

    @firestore.transactional
    def read(transaction: Transaction) -> list[bool]:
        wanted = [client.document("c/a"), client.document("c/b")]
        return sorted(snapshot.exists for snapshot in transaction.get_all(wanted))

    assert read(client.transaction()) == [False, True]


def test_a_read_only_transaction_reads_one_moment(client: Client) -> None:
    client.document("c/a").set({"n": 1})
    client.document("c/b").set({"n": 1})

    @firestore.transactional
    def read(transaction: Transaction) -> tuple[int, int]:
        first: int = client.document("c/a").get(transaction=transaction).get("n")
        other = client.batch()
        other.set(client.document("c/a"), {"n": 2})
        other.set(client.document("c/b"), {"n": 2})
        other.commit()
        return first, client.document("c/b").get(transaction=transaction).get("n")

    assert read(client.transaction(read_only=True)) == (1, 1)


def test_aggregation_within_a_transaction(client: Client) -> None:
    client.document("c/a").set({"n": 1})

    @firestore.transactional
    def count(transaction: Transaction) -> int:
        (results,) = client.collection("c").count().get(transaction=transaction)
        return int(results[0].value)

    assert count(client.transaction()) == 1


@pytest.mark.parametrize("transaction_id", [b"nonsense", b"\x00" * 16])
def test_an_unknown_transaction_is_refused(client: Client, transaction_id: bytes) -> None:
    request = {"database": client._database_string, "transaction": transaction_id}
    with pytest.raises(InvalidArgument):
        client._firestore_api.commit(request=request, metadata=client._rpc_metadata)
    with pytest.raises(InvalidArgument):
        client._firestore_api.rollback(request=request, metadata=client._rpc_metadata)


def test_a_transaction_commits_once(client: Client) -> None:
    api, metadata = client._firestore_api, client._rpc_metadata
    begun = api.begin_transaction(request={"database": client._database_string}, metadata=metadata)
    request = {"database": client._database_string, "transaction": begun.transaction}
    api.commit(request=request, metadata=metadata)
    with pytest.raises(InvalidArgument):
        api.commit(request=request, metadata=metadata)


def test_a_commit_that_fails_can_be_rolled_back_and_tells_why(client: Client) -> None:
    client.document("c/d").set({"n": 1})

    @firestore.transactional
    def create_again(transaction: Transaction) -> None:
        transaction.create(client.document("c/d"), {"n": 2})

    with pytest.raises(AlreadyExists):
        create_again(client.transaction())


def test_a_read_only_transaction_may_not_write(client: Client) -> None:
    api, metadata = client._firestore_api, client._rpc_metadata
    options: dict[str, Any] = {"read_only": {}}
    begun = api.begin_transaction(request={"database": client._database_string, "options": options}, metadata=metadata)
    write = {"update": {"name": f"{client._database_string}/documents/c/d"}}
    with pytest.raises(InvalidArgument):
        api.commit(
            request={"database": client._database_string, "transaction": begun.transaction, "writes": [write]},
            metadata=metadata,
        )


@pytest.mark.parametrize("documents", [["c/d"], []], ids=["found", "nothing found"])
def test_a_query_can_begin_a_transaction(client: Client, documents: list[str]) -> None:
    for path in documents:
        client.document(path).set({"n": 1})
    api, metadata = client._firestore_api, client._rpc_metadata
    parent = f"{client._database_string}/documents"
    query = {"parent": parent, "structured_query": {"from_": [{"collection_id": "c"}]}, "new_transaction": {}}
    first, *rest = api.run_query(request=query, metadata=metadata)
    assert first.transaction
    assert [response.document.name for response in rest if response.document.name] == [
        f"{parent}/{path}" for path in documents
    ]
    request = {"database": client._database_string, "transaction": first.transaction}
    api.commit(request=request, metadata=metadata)


def test_a_read_of_documents_can_begin_a_transaction(client: Client) -> None:
    api, metadata = client._firestore_api, client._rpc_metadata
    names = [f"{client._database_string}/documents/c/d"]
    request = {"database": client._database_string, "documents": names, "new_transaction": {}}
    first, second = api.batch_get_documents(request=request, metadata=metadata)
    assert first.transaction
    assert second.missing == names[0]
    api.rollback(request={"database": client._database_string, "transaction": first.transaction}, metadata=metadata)


async def test_read_modify_write_without_threads(async_client: AsyncClient) -> None:
    document = async_client.document("c/d")
    await document.set({"n": 1})

    @firestore.async_transactional
    async def add_one(transaction: AsyncTransaction) -> None:
        snapshot = await document.get(transaction=transaction)
        transaction.update(document, {"n": snapshot.get("n") + 1})

    await add_one(async_client.transaction())
    await add_one(async_client.transaction())
    assert (await document.get()).to_dict() == {"n": 3}


async def test_a_failed_async_transaction_rolls_back(async_client: AsyncClient) -> None:
    @firestore.async_transactional
    async def fail(transaction: AsyncTransaction) -> None:
        transaction.set(async_client.document("c/d"), {"n": 1})
        raise LookupError("on purpose")

    with pytest.raises(LookupError):
        await fail(async_client.transaction())
    assert not (await async_client.document("c/d").get()).exists

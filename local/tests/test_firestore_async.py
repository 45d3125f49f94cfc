"""Google's asynchronous client over the same features; the details are in the synchronous tests."""

# mypy: disable-error-code="no-untyped-call"

import asyncio

import pytest
from google.api_core.exceptions import AlreadyExists, NotFound
from google.cloud.firestore import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    ArrayUnion,
    AsyncClient,
    FieldFilter,
    Increment,
    Query,
)

pytestmark = pytest.mark.anyio


async def test_documents(async_client: AsyncClient) -> None:
    document = async_client.document("c/d")
    assert not (await document.get()).exists
    await document.set({"a": 1, "m": {"x": 1, "y": 2}})
    await document.update({"m.x": DELETE_FIELD, "n": Increment(2), "list": ArrayUnion([1]), "at": SERVER_TIMESTAMP})
    data = (await document.get()).to_dict()
    assert data is not None
    assert data.pop("at") is not None
    assert data == {"a": 1, "m": {"y": 2}, "n": 2, "list": [1]}
    await document.set({"b": 1})
    assert (await document.get()).to_dict() == {"b": 1}
    await document.delete()
    assert not (await document.get()).exists


async def test_errors(async_client: AsyncClient) -> None:
    document = async_client.document("c/d")
    with pytest.raises(NotFound):
        await document.update({"a": 1})
    await document.create({"a": 1})
    with pytest.raises(AlreadyExists):
        await document.create({"a": 1})


async def test_queries(async_client: AsyncClient) -> None:
    for name, number in {"a": 1, "b": 2, "c": 3}.items():
        await async_client.document(f"c/{name}").set({"n": number})
    query = async_client.collection("c").where(filter=FieldFilter("n", ">", 1))
    assert [snapshot.id async for snapshot in query.stream()] == ["b", "c"]
    assert [s.id for s in await query.order_by("n", direction=Query.DESCENDING).limit(1).get()] == ["c"]
    assert [s.id for s in await async_client.collection("c").order_by("n").limit_to_last(2).get()] == ["b", "c"]
    (results,) = await query.count().get()  # type: ignore[call-arg]
    assert results[0].value == 2


async def test_groups_lists_and_get_all(async_client: AsyncClient) -> None:
    for path in ("users/1/jobs/a", "users/2/jobs/b"):
        await async_client.document(path).set({"n": 1})
    assert [s.id async for s in async_client.collection_group("jobs").stream()] == ["a", "b"]
    assert [d.id async for d in async_client.collection("users").list_documents()] == ["1", "2"]
    assert [c.id async for c in async_client.document("users/1").collections()] == ["jobs"]
    wanted = [async_client.document("users/1/jobs/a"), async_client.document("users/1/jobs/none")]
    assert sorted([(s.id, s.exists) async for s in async_client.get_all(wanted)]) == [("a", True), ("none", False)]


async def test_batches_and_recursive_delete(async_client: AsyncClient) -> None:
    batch = async_client.batch()
    for path in ("c/a", "c/a/s/b", "c/kept"):
        batch.set(async_client.document(path), {"n": 1})
    await batch.commit()
    assert await async_client.recursive_delete(async_client.document("c/a")) == 2
    assert [s.id async for s in async_client.collection("c").stream()] == ["kept"]


async def test_two_hundred_calls_at_once(async_client: AsyncClient) -> None:
    documents = [async_client.document(f"c/d{number}") for number in range(200)]
    await asyncio.gather(*(document.set({"n": 1}) for document in documents))
    snapshots = await asyncio.gather(*(document.get() for document in documents))
    assert all(snapshot.exists for snapshot in snapshots)

"""Reads, with their read time, and of documents that Google's own decoder raises for."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.types import Document, Value, Write

from callboard import FailedPrecondition, InvalidArgs
from callboard_firebase import find, get_document, get_documents, reads, run_query

if TYPE_CHECKING:
    from .conftest import Listening

pytestmark = pytest.mark.anyio

FOREIGN = "projects/other/databases/(default)/documents/clients/charles"


@pytest.fixture
def client(firestore: Listening) -> AsyncClient:
    return firestore.client


async def put_foreign_reference(client: AsyncClient, path: str) -> None:
    """Write a document with a reference into another project, which Google's client cannot even name."""
    document = Document(
        name=f"{client._database_string}/documents/{path}", fields={"friend": Value(reference_value=FOREIGN)}
    )
    await client._firestore_api.commit(
        request={"database": client._database_string, "writes": [Write(update=document)]}
    )


async def test_a_document_and_none(client: AsyncClient) -> None:
    written = await client.document("notes/a").set({"n": 1})

    there, nothing = await get_document(client, "notes/a"), await get_document(client, "notes/none")

    assert there.document is not None
    assert (there.document.path, there.document.id, there.document.data) == ("notes/a", "a", {"n": 1})
    assert there.document.update_time == written.update_time
    assert nothing.document is None
    for read in (there, nothing):
        assert abs(read.read_time - datetime.now(UTC)) < timedelta(minutes=1)


async def test_several_documents_in_one_request(client: AsyncClient) -> None:
    for name in "abc":
        await client.document(f"notes/{name}").set({"name": name})

    reads = await get_documents(client, ["notes/c", "notes/none", "notes/a", "notes/a"])

    found = {path: read.document.data if read.document else None for path, read in reads.items()}
    assert found == {"notes/a": {"name": "a"}, "notes/c": {"name": "c"}, "notes/none": None}
    assert await get_documents(client, []) == {}


async def test_some_fields_of_several_documents(client: AsyncClient) -> None:
    await client.document("notes/a").set({"name": "a", "large": "x" * 1_000, "of": {"one": 1, "two": 2}})
    await client.document("notes/b").set({"large": "x"})

    reads = await get_documents(client, ["notes/a", "notes/b", "notes/none"], ["name", "of.two"])

    found = {path: read.document.data if read.document else None for path, read in reads.items()}
    assert found == {"notes/a": {"name": "a", "of": {"two": 2}}, "notes/b": {}, "notes/none": None}


async def test_a_query_and_one_that_finds_nothing(client: AsyncClient) -> None:
    for n in range(5):
        await client.document(f"notes/n{n}").set({"n": n})
    query = client.collection("notes").order_by("n")

    assert [document.id for document in await find(client, query.limit(2))] == ["n0", "n1"]
    async with aclosing(run_query(client, query)) as found:
        assert (await anext(found)).document is not None  # and is left before its end
    nothing = [read async for read in run_query(client, client.collection("empty").limit(1))]
    assert [read.document for read in nothing] == [None]


async def test_what_is_found_is_bounded_in_bytes_too(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        await client.document(f"notes/n{n}").set({"text": "x" * 1_000})
    query = client.collection("notes").limit(5)
    assert len(await find(client, query)) == 3

    monkeypatch.setattr(reads, "MAX_FOUND_BYTES", 3_000)

    with pytest.raises(FailedPrecondition):
        await find(client, query)
    assert len(await find(client, query.limit(2))) == 2


async def test_a_reference_into_another_database_is_a_text(client: AsyncClient) -> None:
    await put_foreign_reference(client, "notes/a")
    with pytest.raises(ValueError, match="same database"):  # why these reads exist
        await client.document("notes/a").get()

    read = await get_document(client, "notes/a")
    assert read.document is not None
    assert read.document.data == {"friend": FOREIGN}
    assert [document.data for document in await find(client, client.collection("notes").limit(5))] == [
        {"friend": FOREIGN}
    ]


async def test_errors_are_ours(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgs):
        await get_document(client, "notes")
    with pytest.raises(InvalidArgs):
        await get_documents(client, ["notes/a", "notes"])

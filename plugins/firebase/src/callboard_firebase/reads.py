"""Reads, with their read time, which Google's client drops when nothing was found.

The documents are decoded as the listen engine decodes them, so what a watch can deliver, a read can too: Google's own
decoder raises for a reference into another database. Private names of Google's client are used here as they are in
the engine; both are tested against Google's emulator.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.api_core.gapic_v1.method import DEFAULT
from google.cloud.firestore import AsyncClient, AsyncQuery
from google.cloud.firestore_v1.types import BatchGetDocumentsResponse, RunQueryResponse

from callboard.errors import FailedPrecondition
from callboard_firebase.errors import translated
from callboard_firebase.listen.documents import Document, decode, timestamp

MAX_FOUND_BYTES = 64 * 1024 * 1024
"""Of what `find` holds at once, as Firestore sends it: a limit of documents alone would let each have its 1 MiB."""


@dataclass(frozen=True, slots=True)
class Read:
    """A document, or None where there was none, and the time as of which that holds. `size` is in bytes, as sent."""

    document: Document | None
    read_time: datetime
    size: int = 0


async def get_document(client: AsyncClient, path: str) -> Read:
    """The document at a path."""
    return (await get_documents(client, [path]))[path]


async def get_documents(client: AsyncClient, paths: Sequence[str], fields: Sequence[str] = ()) -> dict[str, Read]:
    """The documents at these paths, in one request, by path. `fields`: field paths, and no other fields are brought."""
    if not paths:
        return {}
    prefix = _prefix(client)
    request: dict[str, Any] = {
        "database": client._database_string,
        "documents": [prefix + path for path in dict.fromkeys(paths)],
    }
    if fields:
        request["mask"] = {"field_paths": list(fields)}
    reads: dict[str, Read] = {}
    with translated():
        answer = await client._firestore_api.batch_get_documents(request=request, metadata=client._rpc_metadata)
        async with _ending(answer) as responses:
            async for response in responses:
                raw = BatchGetDocumentsResponse.pb(response)
                if raw.HasField("found"):
                    found = _decode(client, raw.found)
                    reads[found.path] = Read(found, timestamp(raw.read_time), raw.ByteSize())
                elif raw.missing:
                    reads[raw.missing.removeprefix(prefix)] = Read(None, timestamp(raw.read_time))
    if len(reads) < len(request["documents"]):
        raise RuntimeError("Firestore left documents out of its answer")
    return reads


async def run_query(client: AsyncClient, query: AsyncQuery) -> AsyncGenerator[Read, None]:
    """What a query finds, one by one; one step without a document when it finds none. Close it when stopping early."""
    request, _, options = query._prep_stream(retry=DEFAULT)
    with translated():
        answer = await client._firestore_api.run_query(request=request, metadata=client._rpc_metadata, **options)
        async with _ending(answer) as responses:
            async for response in responses:
                raw = RunQueryResponse.pb(response)
                if raw.HasField("document"):
                    yield Read(_decode(client, raw.document), timestamp(raw.read_time), raw.ByteSize())
                elif raw.HasField("read_time"):
                    yield Read(None, timestamp(raw.read_time))


async def find(client: AsyncClient, query: AsyncQuery) -> list[Document]:
    """All that a query with a limit finds. FailedPrecondition: it is more than 64 MiB."""
    found: list[Document] = []
    size = 0
    async with aclosing(run_query(client, query)) as reads:
        async for one in reads:
            size += one.size
            if size > MAX_FOUND_BYTES:
                raise FailedPrecondition(f"The documents are more than {MAX_FOUND_BYTES} bytes: ask for fewer.")
            if one.document is not None:
                found.append(one.document)
    return found


@asynccontextmanager
async def _ending(answer: Any) -> AsyncIterator[Any]:
    """A stream of responses, which is cancelled when it is not read to its end."""
    try:
        yield answer
    finally:
        answer.cancel()


def _prefix(client: AsyncClient) -> str:
    return f"{client._database_string}/documents/"


def _decode(client: AsyncClient, raw: Any) -> Document:
    return decode(raw, raw.name.removeprefix(_prefix(client)), client)

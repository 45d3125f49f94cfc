"""A query's result together with its read time, which Google's client drops when nothing was found.

The documents are decoded as the listen engine decodes them: what a watch can deliver, a read can too.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from google.api_core.gapic_v1.method import DEFAULT
from google.cloud.firestore import AsyncClient, AsyncQuery
from google.cloud.firestore_v1.types import RunQueryResponse

from callboard_firebase.errors import translated
from callboard_firebase.listen import Document
from callboard_firebase.listen.documents import decode, timestamp


@dataclass(frozen=True, slots=True)
class Read:
    """One step of a query: a document, or None in a step that only tells how far the server has read."""

    document: Document | None
    read_time: datetime


async def run_query(client: AsyncClient, query: AsyncQuery) -> AsyncGenerator[Read, None]:
    """What a query finds, one by one; at least one step, so that the read time is known. Close it when stopping early.

    Private names of Google's client are used here and in the listen engine, and tested in both.
    """
    request, _, options = query._prep_stream(retry=DEFAULT)
    prefix = f"{client._database_string}/documents/"
    with translated():
        responses = await client._firestore_api.run_query(request=request, metadata=client._rpc_metadata, **options)
        try:
            async for response in responses:
                raw = RunQueryResponse.pb(response)
                if raw.HasField("document"):
                    path = raw.document.name.removeprefix(prefix)
                    yield Read(decode(raw.document, path, client), timestamp(raw.read_time))
                elif raw.HasField("read_time"):
                    yield Read(None, timestamp(raw.read_time))
        finally:
            responses.cancel()

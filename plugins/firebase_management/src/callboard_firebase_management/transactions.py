"""Firestore transactions on the asynchronous client.

    result = await in_transaction(client, work)   # async def work(transaction) -> result

Google's own decorator gives up after five commits in a row, does not repeat what is aborted while reading, and hides
the reason when a transaction cannot even begin (it then fails to roll back). This one repeats whatever was aborted,
with full-jitter back-off, and raises our errors.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.api_core.exceptions import GoogleAPIError
from google.cloud.firestore import AsyncClient, AsyncDocumentReference
from google.cloud.firestore_v1.async_transaction import AsyncTransaction

from callboard import Aborted
from callboard_firebase import translated

ATTEMPTS = 20
_LONGEST_PAUSE_S = 1.0
_ROLLBACK_S = 2.0
T = TypeVar("T")


async def in_transaction(client: AsyncClient, work: Callable[[AsyncTransaction], Awaitable[T]]) -> T:
    """Run `work`, which reads and then writes through its argument, until its commit stands; what it returned.

    It may run many times, so it does nothing else. Aborted: it lost against concurrent ones every time.
    """
    first: bytes | None = None
    for attempt in range(ATTEMPTS):
        transaction = client.transaction()
        try:
            with translated():
                await transaction._begin(retry_id=first)
                first = first or transaction._id  # keeps its place in the line, where the server has one
                result = await work(transaction)
                await transaction._commit()
                return result
        except Aborted:
            if attempt == ATTEMPTS - 1:
                raise
        finally:
            await _let_go(transaction)
        await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE_S, 0.01 * 2**attempt)))  # noqa: S311 - jitter
    raise AssertionError("unreachable")


async def read_in(
    transaction: AsyncTransaction, *references: AsyncDocumentReference
) -> tuple[dict[str, Any] | None, ...]:
    """The documents at these places as of the transaction, None where there is none."""
    client = references[0]._client  # `AsyncTransaction.get_all` awaits what cannot be awaited
    found = {one.reference.path: one.to_dict() async for one in client.get_all(references, transaction=transaction)}
    return tuple(found[reference.path] for reference in references)


async def _let_go(transaction: AsyncTransaction) -> None:
    """Give back the locks of a transaction that did not commit."""
    if not transaction.in_progress:
        return
    try:
        async with asyncio.timeout(_ROLLBACK_S):
            await transaction._rollback()
    except (GoogleAPIError, TimeoutError):
        pass  # the server forgets it by itself

"""Real servers over real sockets: the embedded Firestore, and a Listen server that follows a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from blockbuster import blockbuster_ctx
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.cloud.firestore import AsyncClient

from callboard_firebase import Batch, Firebase, FirebaseSettings, ListenEngine, ListenOptions
from callboard_local.session_loop import anyio_backend as anyio_backend
from callboard_local.session_loop import grpc_stays as grpc_stays
from callboard_local.session_loop import one_event_loop as one_event_loop


@dataclass(frozen=True)
class Listening:
    """A client and an engine with figures small enough for a test."""

    client: AsyncClient
    engine: ListenEngine


QUICK = ListenOptions(backoff_base_s=0.02, backoff_cap_s=0.2, reopens=100, reopens_window_s=1.0, silence_timeout_s=10)


async def take(batches: AsyncIterator[Batch]) -> Batch:
    """The next batch; a test that waits for one in vain fails here."""
    async with asyncio.timeout(20):
        return await anext(batches)


async def until(batches: AsyncIterator[Batch], reached: Callable[[Batch], bool]) -> list[Batch]:
    """All batches up to the first for which `reached` holds."""
    seen = [await take(batches)]
    while not reached(seen[-1]):
        seen.append(await take(batches))
    return seen


@asynccontextmanager
async def listening(address: str, project: str, options: ListenOptions = QUICK) -> AsyncIterator[Listening]:
    """A connection of its own to the server at `address`."""
    async with (
        Firebase(FirebaseSettings(project_id=project, emulator_host=address)) as firebase,
        ListenEngine(firebase.client, options) as engine,
    ):
        yield Listening(firebase.client, engine)


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A blocking call on the event loop, made by our own package, fails the test that makes it."""
    with blockbuster_ctx(["callboard_firebase"]):
        yield


@pytest.fixture
async def firestore(firestore_address: str, firestore_project: str) -> AsyncIterator[Listening]:
    """An empty Firestore, and an engine that listens to it."""
    async with listening(firestore_address, firestore_project) as opened:
        yield opened


@pytest.fixture(scope="session")
def service_account() -> str:
    """The JSON of a service account that nobody knows."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "its-own",
            "private_key_id": "1",
            "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "client_email": "it@its-own.iam.gserviceaccount.com",
            "token_uri": "https://localhost:1/token",
        }
    )

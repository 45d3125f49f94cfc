"""The service on a real Firestore: the embedded one, and (marked `emulator`) Google's. Events are recorded."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from google.cloud.firestore import AsyncClient

from callboard import Event, Unavailable
from callboard.context import Context
from callboard.host import Host
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_firebase_management import FirebaseManagement
from callboard_local import StripeControl, StripeProcess
from callboard_local.session_loop import anyio_backend as anyio_backend
from callboard_local.session_loop import grpc_stays as grpc_stays
from callboard_local.session_loop import one_event_loop as one_event_loop


@dataclass
class Recorded:
    """Takes the place of the bus: what the service published."""

    events: list[Event] = field(default_factory=list)
    away: bool = False
    """Publishing fails as it does without Redis."""

    async def publish(self, event: Event, /, *, specific: tuple[str, ...] = ()) -> None:
        if self.away:
            raise Unavailable
        self.events.append(event)


@pytest.fixture
def bus() -> Recorded:
    return Recorded()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log_lines(log: io.StringIO) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in log.getvalue().splitlines()]


@pytest.fixture
async def make_service(bus: Recorded, log: io.StringIO) -> AsyncIterator[Callable[..., FirebaseManagement]]:
    """Makes services, not open yet, in an environment of these variables; what they open is closed after the test."""
    async with AsyncExitStack() as resources:

        def make(**environ: str) -> FirebaseManagement:
            telemetry = Telemetry(replica="test", debug=True, stream=log)
            unused: Any = None
            host = Host(
                settings=load(Settings, environ),
                environ=environ,
                telemetry=telemetry,
                connections=unused,
                bus=unused,
                presence=unused,
                listeners=unused,
                tickets=unused,
                resources=resources,
            )
            host.background = Context(bus.publish, asyncio.get_running_loop())
            service = FirebaseManagement()
            service.host, service.log = host, telemetry.log
            return service

        yield make


@pytest.fixture
async def service(
    make_service: Callable[..., FirebaseManagement], firestore_address: str, firestore_project: str
) -> AsyncIterator[FirebaseManagement]:
    """The open service on an empty Firestore."""
    service = make_service(GOOGLE_PROJECT_ID=firestore_project, FIRESTORE_EMULATOR_HOST=firestore_address)
    await service.open()
    # From here on, a blocking call on the event loop, made by our own packages, fails the test that makes it.
    with blockbuster_ctx(["callboard", "callboard_firebase", "callboard_firebase_management"]):
        yield service


@pytest.fixture
def client(service: FirebaseManagement) -> AsyncClient:
    return service.client


@pytest.fixture
def stored(client: AsyncClient) -> Callable[[str], Awaitable[dict[str, Any] | None]]:
    """A document's fields in Google's types, read past the methods under test."""

    async def read(path: str) -> dict[str, Any] | None:
        fields: dict[str, Any] | None = (await client.document(path).get()).to_dict()
        return fields

    return read


@pytest.fixture
def store(client: AsyncClient) -> Callable[[str, dict[str, Any]], Awaitable[None]]:
    async def write(path: str, fields: dict[str, Any]) -> None:
        await client.document(path).set(fields)

    return write


@pytest.fixture
def stripe_environ(stripe_server: StripeProcess, stripe_account: StripeControl) -> dict[str, str]:
    """The Stripe variables of an account of this test's own."""
    return {
        "STRIPE_SECRET_KEY": stripe_account.secret_key,
        "STRIPE_API_BASE": stripe_server.url,
        "STRIPE_SUCCESS_URL": "https://app.example.com/done",
        "STRIPE_CANCEL_URL": "https://app.example.com/back",
    }


@pytest.fixture
async def paid_service(
    make_service: Callable[..., FirebaseManagement],
    firestore_address: str,
    firestore_project: str,
    stripe_environ: dict[str, str],
) -> AsyncIterator[FirebaseManagement]:
    """The open service on an empty Firestore, with a Stripe account."""
    service = make_service(
        GOOGLE_PROJECT_ID=firestore_project, FIRESTORE_EMULATOR_HOST=firestore_address, **stripe_environ
    )
    await service.open()
    with blockbuster_ctx(["callboard", "callboard_firebase", "callboard_firebase_management"]):
        yield service


@pytest.fixture
def paths(client: AsyncClient) -> Callable[[str], Awaitable[list[str]]]:
    """The documents that exist at and beneath a path, sorted; read past the methods under test."""

    async def find(path: str) -> list[str]:
        found = [path] if (await client.document(path).get()).exists else []
        async for collection in client.document(path).collections():
            found += [str(each.reference.path) async for each in collection.recursive().stream()]
        return sorted(found)

    return find

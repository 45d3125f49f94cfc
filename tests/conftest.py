"""Fixtures of the whole-system tests. Real servers come from callboard-local's pytest plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from support import MakeSettings, Recorded

from callboard.connections import Connections
from callboard.settings import Settings, load
from callboard_local import ValkeyServer

OUR_PACKAGES = [
    "callboard",
    "callboard_firebase",
    "callboard_firebase_management",
    "callboard_firebase_realtime",
    "callboard_registry",
    "callboard_workflow_listener",
]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """A blocking call on the event loop, made by our own packages, fails the test that makes it."""
    with blockbuster_ctx(OUR_PACKAGES) as guard:
        yield guard


@pytest.fixture
def make_settings(valkey_server: ValkeyServer) -> MakeSettings:
    """Settings on the shared Valkey; variables by keyword win."""

    def make(**variables: str) -> Settings:
        given = {
            "LISTENERS_SERVICE_TOKEN": "t0ken",
            "LISTENERS_REDIS_HOST": "127.0.0.1",
            "LISTENERS_REDIS_PORT": str(valkey_server.port),
        }
        return load(Settings, {**given, **variables})

    return make


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
async def connections(make_settings: MakeSettings, recorded: Recorded) -> AsyncIterator[Connections]:
    async with Connections(make_settings(), recorded.telemetry) as opened:
        yield opened

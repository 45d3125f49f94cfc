"""Fixtures of the whole-system tests. Real servers come from callboard-local's pytest plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from redis.asyncio import Redis
from support import Address, MakeSettings, Recorded, administering, settings_on

from callboard.connections import Connections
from callboard_local import ValkeyServer
from callboard_local.session_loop import grpc_stays as grpc_stays

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


@pytest.fixture(scope="session")
def redis_channels() -> tuple[str, ...]:
    return ("vector:",)


@pytest.fixture
def redis_server(valkey_server: ValkeyServer) -> Address:
    """The Redis under test; a module whose tests hold on every kind overrides this by `redis_deployment`."""
    return valkey_server


@pytest.fixture
async def admin(redis_server: Address) -> AsyncIterator[Redis]:
    """A client of the Redis under test that may do everything."""
    async with administering(redis_server) as client:
        yield client


@pytest.fixture
def make_settings(redis_server: Address) -> MakeSettings:
    """Settings on the Redis under test; variables by keyword win."""
    return partial(settings_on, redis_server)


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
async def connections(make_settings: MakeSettings, recorded: Recorded) -> AsyncIterator[Connections]:
    async with Connections(make_settings(), recorded.telemetry) as opened:
        yield opened

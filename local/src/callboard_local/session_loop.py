"""One event loop for a whole test session, for suites that use `grpc.aio`. A conftest imports the fixtures:

    from callboard_local.session_loop import anyio_backend as anyio_backend
    from callboard_local.session_loop import grpc_stays as grpc_stays
    from callboard_local.session_loop import one_event_loop as one_event_loop

gRPC may deliver the last events of a cancelled call a moment later, to a loop that must then still be there. They are
not in the pytest plugin, because there they would decide for every suite.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_event_loop(anyio_backend: str) -> AsyncIterator[None]:
    """All tests share a loop, as the calls of a service do."""
    yield
    await asyncio.sleep(0)  # run what gRPC scheduled last


@pytest.fixture(scope="session", autouse=True)
def grpc_stays() -> Iterator[None]:
    """gRPC ends with its last channel, and then waits for a thread: in whatever test that channel is collected."""
    loop = asyncio.new_event_loop()  # gRPC wants one to be current, of whichever suite's run before; it is never run
    asyncio.set_event_loop(loop)
    grpc.aio.init_grpc_aio()
    asyncio.set_event_loop(None)
    yield
    grpc.aio.shutdown_grpc_aio()
    loop.close()

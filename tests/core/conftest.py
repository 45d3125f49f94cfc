"""An application under a real server: uvicorn on a bound socket of port 0, in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp

from callboard.protocols import HttpProtocol, Peers, WebSocketProtocol

Serve = Callable[..., Awaitable[str]]


@asynccontextmanager
async def running(app: ASGIApp, **options: Any) -> AsyncIterator[str]:
    """Serve `app`; yields `host:port`."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, http=HttpProtocol, ws=WebSocketProtocol, ws_max_size=65_536,
            ws_per_message_deflate=False, timeout_graceful_shutdown=1, proxy_headers=False, **options,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.server_state = Peers(most=10_000)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        host, port = listening.getsockname()
        try:
            yield f"{host}:{port}"  # bound and listening already: a client's connect waits in the backlog
        finally:
            server.should_exit = True
            await task


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(app: ASGIApp, **options: Any) -> str:
            return await stack.enter_async_context(running(app, **options))

        yield start

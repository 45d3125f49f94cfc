"""The HTTP server of the stand-in, on the loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from starlette.applications import Starlette

from callboard_local.http_server import HttpServer
from callboard_local.server import HOST

from .accounts import Accounts
from .api import api_routes
from .control import control_routes
from .deliveries import Deliveries
from .errors import ApiError
from .pages import page_error, page_routes

RETRY_S = 1.0

_SWEEP_S = 1.0


class StripeServer:
    """A Stripe in this process: `async with StripeServer() as server: server.url`.

    `port` 0 takes a free one. `webhook_url` gets every event of every account, signed with `webhook_secret`; a delivery
    that fails is repeated after `retry_s` seconds, then after twice that, and so on. Everything lives in memory.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self.host = HOST
        self.port = port
        self._webhook = (webhook_url, webhook_secret)
        self._retry_s = retry_s
        self._server = HttpServer(self._app(), lifespan="on")

    @property
    def url(self) -> str:
        """The value for `STRIPE_API_BASE`."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        self.port = await self._server.start(self.port)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._server.stop()

    def _app(self) -> Starlette:
        deliveries = Deliveries(self._retry_s)
        accounts = Accounts(deliveries, lambda: self.url, *self._webhook)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with deliveries:
                sweeping = asyncio.create_task(_sweep(accounts), name="expiry of sessions")
                try:
                    yield
                finally:
                    sweeping.cancel()
                    await asyncio.wait({sweeping})

        routes = [*api_routes(accounts), *page_routes(accounts), *control_routes(accounts)]
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers={ApiError: page_error})


async def _sweep(accounts: Accounts) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        accounts.expire_overdue()

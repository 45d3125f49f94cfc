"""One connection of a stream: opened with a token, followed through redirects, read event by event."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from callboard.errors import Unavailable
from callboard_firebase.realtime.address import Address
from callboard_firebase.realtime.errors import refusal
from callboard_firebase.realtime.options import RealtimeOptions
from callboard_firebase.realtime.rest import MAX_REDIRECTS, REDIRECTS

_MAX_REFUSAL_BYTES = 64 * 1024


class Connections:
    """Opens the connections of a database's streams.

    Each has a client of its own: httpx's pool walks through all its connections whenever one comes or goes, so that
    4,000 streams in one pool take more than half as long again to open as apart.
    """

    def __init__(self, address: Address, options: RealtimeOptions, context: ssl.SSLContext) -> None:
        self._address = address
        self._options = options
        self._context = context
        self._openings = asyncio.Semaphore(options.openings)

    @asynccontextmanager
    async def open(self, url: httpx.URL, token: str) -> AsyncIterator[httpx.Response]:
        """A response that streams events. Raises httpx.HTTPError, Refusal (a status), Unavailable (no event stream)."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._client(token))
            async with self._openings:
                response = await self._answer(client, url)
                stack.push_async_callback(response.aclose)
                await _check(response)
            yield response

    def _client(self, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._context,
            trust_env=not self._address.emulated,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
            timeout=httpx.Timeout(self._options.silence_timeout_s, connect=self._options.connect_timeout_s),
            headers={
                "Accept": "text/event-stream",
                "Accept-Encoding": "identity",
                "Cache-Control": "no-store",
                "Authorization": f"Bearer {token}",
            },
        )

    async def _answer(self, client: httpx.AsyncClient, url: httpx.URL) -> httpx.Response:
        """The answer at the end of the redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await client.send(client.build_request("GET", url), stream=True)
            if response.status_code not in REDIRECTS:
                return response
            await response.aclose()
            url = self._address.redirected(url, response.headers.get("Location", ""))
        raise Unavailable("The database redirects in a circle.")


async def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            # A proxy's page, perhaps.
            raise Unavailable("Firebase answered with something that is no event stream.")
        return
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _MAX_REFUSAL_BYTES:
            break
    raise refusal(response.status_code, bytes(body))

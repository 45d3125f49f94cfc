"""One request: its token, its redirects, its single retry, its bounds."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from callboard.errors import CallError, DeadlineExceeded, FailedPrecondition, OutcomeUnknown, Unavailable
from callboard_firebase.errors import translated
from callboard_firebase.realtime.address import Address
from callboard_firebase.realtime.errors import error_for, refusal
from callboard_firebase.realtime.options import RealtimeOptions
from callboard_firebase.realtime.tokens import Tokens

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 307, 308})

# The connection was there and broke: a pooled one that the server had closed breaks like this at its next use.
_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_NOT_BEGUN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `repeatable`: sent twice, it leaves the same state."""

    method: str
    url: httpx.URL
    content: bytes | None = None
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    location: str
    body: bytes


class Rest:
    """The pooled connections of a database's requests; streams have their own."""

    def __init__(self, address: Address, tokens: Tokens, options: RealtimeOptions, context: ssl.SSLContext) -> None:
        self._address = address
        self._tokens = tokens
        self._options = options
        self._client = httpx.AsyncClient(
            verify=context,
            trust_env=not address.emulated,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30.0),
            timeout=httpx.Timeout(options.request_timeout_s, connect=options.connect_timeout_s),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def send(self, ask: Ask, timeout_s: float | None = None) -> bytes:
        """The answer's body; a CallError for every other end."""
        try:
            async with asyncio.timeout(timeout_s or self._options.request_timeout_s):
                return await self._authorized(ask)
        except TimeoutError as error:
            raise _failure(ask, error) from error
        except httpx.HTTPError as error:
            raise _failure(ask, error) from error

    async def _authorized(self, ask: Ask) -> bytes:
        with translated():
            token = await self._tokens.get()
        answer = await self._redirected(ask, token)
        if answer.status == 401 and refusal(answer.status, answer.body).of_the_token:
            # It was refused, not executed: every method may be sent again.
            with translated():
                token = await self._tokens.get(refused=token)
            answer = await self._redirected(ask, token)
        if not 200 <= answer.status < 300:
            failure = error_for(refusal(answer.status, answer.body))
            raise failure from failure.__cause__
        return answer.body

    async def _redirected(self, ask: Ask, token: str) -> _Answer:
        url = ask.url
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._once_more(ask, url, token)
            if answer.status not in REDIRECTS:
                return answer
            url = self._address.redirected(url, answer.location)
        raise Unavailable("The database redirects in a circle.")

    async def _once_more(self, ask: Ask, url: httpx.URL, token: str) -> _Answer:
        try:
            return await self._attempt(ask, url, token)
        except _BROKEN:
            if not ask.repeatable:
                raise
            return await self._attempt(ask, url, token)

    async def _attempt(self, ask: Ask, url: httpx.URL, token: str) -> _Answer:
        headers = {"Authorization": f"Bearer {token}"}
        if ask.content is not None:
            headers["Content-Type"] = "application/json"
        request = self._client.build_request(ask.method, url, content=ask.content, headers=headers)
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self._options.max_body_bytes:
                    raise FailedPrecondition("The answer is larger than this service reads: ask for less of it.")
        finally:
            await response.aclose()
        return _Answer(response.status_code, response.headers.get("Location", ""), bytes(body))


def _failure(ask: Ask, error: Exception) -> CallError:
    if isinstance(error, _NOT_BEGUN):
        return Unavailable("Firebase cannot be reached.")
    if not ask.repeatable:
        return OutcomeUnknown()
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return DeadlineExceeded("Firebase did not answer in time.")
    return Unavailable("Firebase cannot be reached.")

"""The bearer tokens of requests and streams, renewed off the loop and once for all who wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC
from functools import partial
from typing import Any, Protocol

import requests
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

from callboard.errors import Unavailable

SCOPES = ("https://www.googleapis.com/auth/userinfo.email", "https://www.googleapis.com/auth/firebase.database")

_MARGIN_S = 300.0
_REQUEST_TIMEOUT_S = 10.0
_RENEWAL_TIMEOUT_S = 30.0


class Tokens(Protocol):
    """Where the token comes from."""

    async def get(self, refused: str | None = None) -> str:
        """A token that is good for a while. `refused`: one that the database did not accept; another is wanted.

        Raises GoogleAuthError, or Unavailable when Google takes too long or the service closes.
        """

    async def close(self) -> None:
        """Nobody asks any more."""


class EmulatorTokens:
    """What an emulator takes for an administrator's."""

    async def get(self, refused: str | None = None) -> str:
        return "owner"

    async def close(self) -> None:
        return


class GoogleTokens:
    """Those of Google credentials, which are this object's alone."""

    def __init__(self, credentials: Any, *, clock: Callable[[], float] = time.time) -> None:
        self._credentials = credentials
        self._clock = clock
        self._token: str | None = None
        self._expires_at = 0.0
        self._renewal: asyncio.Task[str] | None = None

    async def get(self, refused: str | None = None) -> str:
        if (token := self._good(refused, _MARGIN_S)) is not None:
            return token
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(), name="firebase-token-renewal")
            self._renewal.add_done_callback(self._on_renewed)
        renewal = self._renewal
        try:
            return await asyncio.shield(renewal)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not renewal.cancelled() or (task is not None and task.cancelling()):
                raise
            raise Unavailable("The service is closing.") from None
        except (GoogleAuthError, Unavailable):
            # It was renewed early: the old one may still do.
            if (token := self._good(refused)) is None:
                raise
            return token

    async def close(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])

    def _good(self, refused: str | None, margin_s: float = 0.0) -> str | None:
        left_s = self._expires_at - self._clock()
        return self._token if self._token != refused and left_s > margin_s else None

    async def _renew(self) -> str:
        try:
            async with asyncio.timeout(_RENEWAL_TIMEOUT_S):
                token, self._expires_at = await asyncio.to_thread(self._refresh)
        except TimeoutError:
            raise Unavailable("Google does not answer a request for a token.") from None
        self._token = token
        return token

    def _refresh(self) -> tuple[str, float]:
        """Signs and asks Google: runs on a thread."""
        with requests.Session() as session:
            self._credentials.refresh(partial(Request(session), timeout=_REQUEST_TIMEOUT_S))
        expiry = self._credentials.expiry  # UTC, without saying so
        return self._credentials.token, expiry.replace(tzinfo=UTC).timestamp() if expiry else float("inf")

    def _on_renewed(self, renewal: asyncio.Task[str]) -> None:
        self._renewal = None
        if not renewal.cancelled():
            renewal.exception()  # those who waited have it; they may all have left

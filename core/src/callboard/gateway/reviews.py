"""ID tokens of open sockets, looked at again: at each heartbeat, the sockets of those that were revoked are closed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from callboard.errors import Unavailable
from callboard.gateway.closing import CloseCode
from callboard.gateway.sessions import batches
from callboard.identity import TokenVerifier, VerifiedToken
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from callboard.gateway.connection import Connection

_TOKENS_AT_A_TIME = 100
_TIMEOUT_S = 30.0


class Reviews:
    """Told of every socket that an ID token opened; asks `verifier`, when there is one."""

    def __init__(self, telemetry: Telemetry, *, interval_s: float) -> None:
        self.verifier: TokenVerifier | None = None
        self._telemetry = telemetry
        self._interval_s = interval_s
        self._tokens: dict[Connection, VerifiedToken] = {}

    def opened(self, connection: Connection, token: VerifiedToken | None) -> None:
        if token is not None:
            self._tokens[connection] = token

    def closed(self, connection: Connection) -> None:
        self._tokens.pop(connection, None)

    async def run(self) -> None:
        """For ever. While nobody can tell, sockets stay: their tokens expire within the hour."""
        while True:
            await asyncio.sleep(self._interval_s)
            for some in batches(list(self._tokens.items()), _TOKENS_AT_A_TIME):
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        await self._review(dict(some))
                except (Unavailable, TimeoutError):
                    self._telemetry.log.warning("id_tokens_unchecked", tokens=len(self._tokens))
                    break
                except Exception as error:  # noqa: BLE001 - the next look may do better
                    self._telemetry.log.error("task_failed", task="websockets: ID tokens", **where_raised(error))
                    break

    async def _review(self, some: dict[Connection, VerifiedToken]) -> None:
        if self.verifier is None:
            return
        revoked = set(await self.verifier.revoked(set(some.values())))
        for connection, token in some.items():
            if token in revoked:
                connection.close(CloseCode.BAD_CREDENTIAL)

"""Tickets: what a browser shows instead of a token to open its user's WebSocket, once and soon.

A ticket is a signed JWT (HS256): who it is for (`sub`), until when (`exp`), and an id (`jti`) that Redis remembers once
it has been used, so that it opens one connection over all replicas. The key is derived from LISTENERS_TICKET_SECRET,
the same on all replicas; or from the token of the credential `service`, and then a ticket is good under any of its live
tokens: while one replaces the other, replicas that sign with different ones take each other's tickets.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from contextlib import suppress
from typing import Any

import jwt

from callboard.connections import Connections, redis_errors
from callboard.credentials import service_tokens
from callboard.errors import ConfigurationError, InvalidArgs, Unauthenticated
from callboard.messages import check_identifier, new_id
from callboard.settings import Settings

MAX_TTL_S = 3_600
_ALGORITHM = "HS256"
_AUDIENCE = "callboard-ws"
_LABEL = b"callboard websocket tickets, 1"
_MAX_LENGTH = 4_096
_CLOCKS_DIFFER_S = 60


class Tickets:
    """Issues and redeems the tickets of one service."""

    def __init__(self, settings: Settings, connections: Connections) -> None:
        own = settings.ticket_secret
        secrets = [own.reveal().encode("utf-8", "surrogateescape")] if own else service_tokens(settings)
        if not secrets:
            raise ConfigurationError("LISTENERS_SERVICE_TOKEN is not set")
        self._keys = [hmac.digest(secret, _LABEL, "sha256") for secret in secrets]
        self._connections = connections

    def issue(self, uid: str, ttl_s: int = 60) -> str:
        """A ticket for one connection of this user, good for `ttl_s` seconds (1 to 3,600). InvalidArgs."""
        check_identifier(uid)
        if not 1 <= ttl_s <= MAX_TTL_S:
            raise InvalidArgs(f"ttl_s must be 1 to {MAX_TTL_S} seconds")
        claims = {"aud": _AUDIENCE, "sub": uid, "jti": new_id(), "exp": int(time.time()) + ttl_s}
        return jwt.encode(claims, self._keys[0], algorithm=_ALGORITHM)

    async def redeem(self, ticket: str) -> str:
        """The user of a ticket, which is then spent.

        Unauthenticated: forged, expired, or used before; which of them is not said. Unavailable: Redis is away, and
        without it a ticket could be used twice.
        """
        uid, ticket_id, expires_at = self._verify(ticket)
        nonce = new_id().encode()
        key = f"callboard:ticket:{hashlib.sha256(ticket_id.encode()).hexdigest()[:32]}"
        keep_s = max(1, expires_at - int(time.time())) + _CLOCKS_DIFFER_S
        with redis_errors(self._connections):
            # A retry after a lost reply finds the key set, by itself: the nonce tells.
            if not await self._connections.commands.set(key, nonce, nx=True, ex=keep_s):
                spent_by = await self._connections.commands.get(key)
                if spent_by != nonce:
                    raise Unauthenticated("This ticket is not valid.")
        return uid

    def _verify(self, ticket: str) -> tuple[str, str, int]:
        try:
            if len(ticket) > _MAX_LENGTH:
                raise Unauthenticated
            claims = self._claims(ticket)
            uid, ticket_id, expires_at = claims["sub"], claims["jti"], claims["exp"]
            if not isinstance(ticket_id, str) or not isinstance(expires_at, int):
                raise Unauthenticated
            if expires_at > time.time() + MAX_TTL_S + _CLOCKS_DIFFER_S:  # we issue none that are good for so long
                raise Unauthenticated
            return check_identifier(uid), ticket_id, expires_at
        except (jwt.InvalidTokenError, InvalidArgs, Unauthenticated, ValueError, RecursionError):
            raise Unauthenticated("This ticket is not valid.") from None

    def _claims(self, ticket: str) -> dict[str, Any]:
        for key in self._keys:
            with suppress(jwt.InvalidSignatureError):
                return jwt.decode(
                    ticket,
                    key,
                    algorithms=[_ALGORITHM],
                    audience=_AUDIENCE,
                    options={"require": ["aud", "sub", "jti", "exp"]},
                )
        raise Unauthenticated

"""Whose an ID token is: what the core asks of a plugin that can tell.

    @hookimpl
    def register_token_verifier(settings): return IdTokens      # a class; the app makes one, and opens it

A browser shows its ID token in the first frame of `/ws`; the core knows none, and takes none without a verifier.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from callboard.host import SharedResource


class VerifiedToken(NamedTuple):
    """What a verifier found in an ID token. Both times are Unix time; `issued_at` 0 where nobody will ask."""

    uid: str
    expires_at: float
    issued_at: float = 0.0


class TokenVerifier(SharedResource, Protocol):
    """Checks ID tokens. An app has one, made from its own `Settings` and open while the app is."""

    async def verify(self, token: str) -> VerifiedToken:
        """Whose this text is; whoever sent it may have made it up. Never blocks the loop.

        Raises Unauthenticated for one that is not good, whatever is wrong with it; Unavailable when it cannot tell. One
        that takes longer than 15 s could not tell.
        """

    async def revoked(self, tokens: Collection[VerifiedToken]) -> Collection[VerifiedToken]:
        """Those of these tokens that are good no more. Asked at each heartbeat, for at most a hundred open sockets.

        Raises Unavailable when it cannot tell. One that takes longer than 30 s could not: the sockets stay.
        """

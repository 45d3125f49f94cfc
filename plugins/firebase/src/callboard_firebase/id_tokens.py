"""Firebase ID tokens, checked by Google's own library, off the loop.

    @hookimpl
    def register_token_verifier(): return IdTokens

RS256 alone, by Google's certificates, which are fetched when they expire; the project's name is the audience. The
library waits for the network while it fetches, so it runs on a few threads of its own: while Google does not answer,
log-ins by ID token wait, for a bounded time, and nothing else does.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import firebase_admin
from firebase_admin import auth
from firebase_admin.exceptions import FirebaseError
from google.auth.exceptions import GoogleAuthError
from msgspec import Struct

from callboard.errors import ConfigurationError, Unauthenticated, Unavailable
from callboard.identity import VerifiedToken
from callboard_firebase.credentials import auth_client
from callboard_firebase.settings import FirebaseSettings

T = TypeVar("T")

_MAX_LENGTH = 16_384
"""Characters. Google's are below 4 KiB: a user's own claims have at most 1,000."""
_EMULATOR = "FIREBASE_AUTH_EMULATOR_HOST"
_MADE_UP = (ValueError, TypeError, AttributeError, KeyError, RecursionError)
"""What Google's parser lets out for texts that no honest client sends."""


class IdTokens:
    """A `callboard.identity.TokenVerifier`. Entering dials nobody; ConfigurationError when the settings fit nothing.

    Without a project in the settings it opens, and takes no token.
    """

    Settings: ClassVar[type[Struct]] = FirebaseSettings

    def __init__(
        self,
        settings: FirebaseSettings,
        *,
        timeout_s: float = 10.0,
        http_timeout_s: float = 4.0,
        threads: int = 4,
        max_waiting: int = 500,
    ) -> None:
        """`timeout_s` bounds a check, the wait for a thread included; `http_timeout_s` each silence of Google's."""
        self.settings = settings
        self._timeout_s = timeout_s
        self._http_timeout_s = http_timeout_s
        self._max_waiting = max_waiting
        self._waiting = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ID tokens")
        self._app: firebase_admin.App | None = None
        self._client: auth.Client | None = None

    async def __aenter__(self) -> Self:
        if self.settings.id_tokens_configured:
            if self._is_emulated_unasked():
                raise ConfigurationError(f"{_EMULATOR} is not the same in the settings and the process's environment")
            self._app, self._client = await asyncio.to_thread(auth_client, self.settings, self._http_timeout_s)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client = None
        if self._app is not None:
            firebase_admin.delete_app(self._app)
            self._app = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def verify(self, token: str) -> VerifiedToken:
        """Whose token it is. Unauthenticated: which of the checks it failed is not said. Unavailable: ask again."""
        client = self._client
        if client is None:
            raise Unauthenticated("This service takes no ID tokens.")
        if len(token) > _MAX_LENGTH or not token.isascii():
            raise Unauthenticated("This ID token is not valid.")
        claims = await self._on_thread(lambda: self._claims(client, token))
        try:
            return VerifiedToken(str(claims["uid"]), float(claims["exp"]), float(claims["iat"]))
        except _MADE_UP:
            raise Unauthenticated("This ID token is not valid.") from None

    async def revoked(self, tokens: Collection[VerifiedToken]) -> Collection[VerifiedToken]:
        """Those whose users are disabled, deleted, or signed out since; none of them unless FIREBASE_CHECK_REVOKED."""
        client = self._client
        if client is None or not self.settings.check_revoked:
            return ()
        return await self._on_thread(lambda: _revoked(client, tokens))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._max_waiting:
            raise Unavailable("ID tokens cannot be checked now.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise Unavailable("ID tokens cannot be checked now.") from None
        finally:
            self._waiting -= 1

    def _claims(self, client: auth.Client, token: str) -> dict[str, Any]:
        if self._is_emulated_unasked():
            raise Unavailable("ID tokens cannot be checked now.")
        try:
            claims: dict[str, Any] = client.verify_id_token(
                token, check_revoked=self.settings.check_revoked, clock_skew_seconds=self.settings.clock_skew_s
            )
        except (auth.InvalidIdTokenError, auth.UserNotFoundError, auth.UserDisabledError) as error:
            if isinstance(error.cause, json.JSONDecodeError | UnicodeDecodeError):  # of the certificates
                raise Unavailable("ID tokens cannot be checked now.") from error
            raise Unauthenticated("This ID token is not valid.") from error
        except (FirebaseError, GoogleAuthError) as error:
            raise Unavailable("ID tokens cannot be checked now.") from error
        except _MADE_UP as error:
            raise Unauthenticated("This ID token is not valid.") from error
        return claims

    def _is_emulated_unasked(self) -> bool:
        # Google's library looks at the process's environment at every check, and then asks for no signature.
        return os.environ.get(_EMULATOR, "") != self.settings.auth_emulator_host


def _revoked(client: auth.Client, tokens: Collection[VerifiedToken]) -> Collection[VerifiedToken]:
    try:
        found = client.get_users([auth.UidIdentifier(uid) for uid in {token.uid for token in tokens}])
    except (FirebaseError, GoogleAuthError) as error:
        raise Unavailable("ID tokens cannot be checked now.") from error
    valid_from = {user.uid: user.tokens_valid_after_timestamp / 1000 for user in found.users if not user.disabled}
    return [token for token in tokens if token.issued_at < valid_from.get(token.uid, float("inf"))]

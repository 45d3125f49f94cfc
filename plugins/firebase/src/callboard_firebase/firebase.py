"""The app's one connection to Firebase, shared by the plugins.

firebase = await self.host.shared(Firebase)
await firebase.client.document("clients/demo").get()
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import firebase_admin
from firebase_admin import credentials, firestore_async
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import AsyncClient
from msgspec import Struct

from callboard.errors import ConfigurationError, DeadlineExceeded, Unavailable
from callboard_firebase.channel import connect, disconnect
from callboard_firebase.errors import translated
from callboard_firebase.listen import ListenEngine, ListenOptions
from callboard_firebase.settings import FirebaseSettings

_EMULATOR_PROJECT = "demo"


class Firebase:
    """A Firebase app of its own: two in one process share nothing, not even an emulator.

    Entering reads the credentials, on a thread, and raises ConfigurationError when they cannot be used; it does not
    dial. Without any Firebase in the settings it opens all the same, `configured` is False, and `client` and `listen`
    raise Unavailable.
    """

    Settings: ClassVar[type[Struct]] = FirebaseSettings

    def __init__(self, settings: FirebaseSettings) -> None:
        self.settings = settings
        self._client: AsyncClient | None = None
        self._listen: ListenEngine | None = None
        self._stack = AsyncExitStack()

    @property
    def configured(self) -> bool:
        """Whether there is any Firebase to talk to."""
        return self.settings.configured

    @property
    def client(self) -> AsyncClient:
        """Google's Firestore client. Unavailable: not configured, or closed."""
        if self._client is None:
            raise Unavailable("This service has no Firebase.")
        return self._client

    @property
    def listen(self) -> ListenEngine:
        """The listen engine on that client. Unavailable: not configured, or closed."""
        if self._listen is None:
            raise Unavailable("This service has no Firebase.")
        return self._listen

    async def __aenter__(self) -> Self:
        if not self.configured:
            return self
        async with AsyncExitStack() as stack:
            app, client = await asyncio.to_thread(_make_client, self.settings)
            stack.callback(firebase_admin.delete_app, app)
            await connect(client, self.settings.emulator_host or None)
            stack.push_async_callback(disconnect, client)
            options = ListenOptions(targets_per_stream=self.settings.targets_per_stream)
            self._listen = await stack.enter_async_context(ListenEngine(client, options))
            self._client = client
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client = self._listen = None
        await self._stack.aclose()

    async def check(self, timeout_s: float = 5.0) -> float:
        """Read one document that does not exist: the seconds it took. Raises the CallError that says what is wrong."""
        began = time.monotonic()
        document = self.client.document("callboard_probe/check")
        try:
            with translated():
                async with asyncio.timeout(timeout_s):
                    await document.get(retry=None, timeout=timeout_s)
        except TimeoutError:
            raise DeadlineExceeded("Firebase did not answer in time.") from None
        return time.monotonic() - began


def _make_client(settings: FirebaseSettings) -> tuple[firebase_admin.App, AsyncClient]:
    """Reads files and may ask a metadata server: runs on a thread."""
    credential = _credential(settings)
    project = settings.project_id or (_EMULATOR_PROJECT if settings.emulator_host else "")
    options = {"projectId": project} if project else {}
    app = firebase_admin.initialize_app(credential, options, name=f"callboard-{secrets.token_hex(8)}")
    try:
        return app, firestore_async.client(app)
    except (GoogleAuthError, ValueError) as error:
        firebase_admin.delete_app(app)
        # Google's texts name variables and files, never what is in them.
        raise ConfigurationError(f"Firebase cannot be set up: {error}") from error


def _credential(settings: FirebaseSettings) -> Any:
    if settings.emulator_host:
        return AnonymousCredentials()
    if settings.admin_json is not None:
        return _service_account(settings.admin_json.reveal(), "FIREBASE_ADMIN_JSON")
    path = settings.application_credentials
    if path and path != os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        # Google reads the variable from the process's environment alone; a service account's file needs no Google.
        return _service_account(path, "GOOGLE_APPLICATION_CREDENTIALS")
    return credentials.ApplicationDefault()


def _service_account(text: str, variable: str) -> credentials.Certificate:
    """From a file's path or the JSON itself. Errors name the variable and never its content."""
    try:
        inline = text.lstrip().startswith("{")
        content = json.loads(text if inline else Path(text).read_text(encoding="utf-8"))
        return credentials.Certificate(content)
    except OSError as error:
        raise ConfigurationError(f"{variable}: the file cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, AttributeError):
        raise ConfigurationError(
            f"{variable} is neither the JSON of a service account nor the path of a file with it."
        ) from None

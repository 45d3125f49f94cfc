"""The app's one connection to Firebase, shared by the plugins.

firebase = await self.host.shared(Firebase)
await firebase.client.document("clients/demo").get()
await firebase.realtime.get("clients/demo/direct_message_notif")
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import ClassVar, Self

import firebase_admin
from google.cloud.firestore import AsyncClient
from msgspec import Struct

from callboard.errors import DeadlineExceeded, Unavailable
from callboard_firebase.channel import connect, disconnect
from callboard_firebase.credentials import firestore_client, realtime_credentials
from callboard_firebase.errors import translated
from callboard_firebase.listen import ListenEngine, ListenOptions
from callboard_firebase.realtime import Address, EmulatorTokens, GoogleTokens, RealtimeDatabase, Tokens
from callboard_firebase.settings import FirebaseSettings


class Firebase:
    """A Firebase app of its own: two in one process share nothing, not even an emulator.

    Entering reads the credentials, on a thread, and raises ConfigurationError when they cannot be used; it does not
    dial. Firestore and the Realtime Database are configured apart. It opens without either: `configured` is then False,
    and `client` and `listen` raise Unavailable; so do `realtime_configured` and `realtime`.
    """

    Settings: ClassVar[type[Struct]] = FirebaseSettings

    def __init__(self, settings: FirebaseSettings) -> None:
        self.settings = settings
        self._client: AsyncClient | None = None
        self._listen: ListenEngine | None = None
        self._realtime: RealtimeDatabase | None = None
        self._stack = AsyncExitStack()

    @property
    def configured(self) -> bool:
        """Whether there is any Firestore to talk to."""
        return self.settings.configured

    @property
    def realtime_configured(self) -> bool:
        """Whether there is any Realtime Database to talk to."""
        return self.settings.realtime_configured

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

    @property
    def realtime(self) -> RealtimeDatabase:
        """The Realtime Database. Unavailable: not configured, or closed."""
        if self._realtime is None:
            raise Unavailable("This service has no Realtime Database.")
        return self._realtime

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            firestore = await self._open_firestore(stack) if self.configured else (None, None)
            realtime = await self._open_realtime(stack) if self.realtime_configured else None
            self._client, self._listen = firestore
            self._realtime = realtime
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client = self._listen = self._realtime = None
        await self._stack.aclose()

    async def _open_firestore(self, stack: AsyncExitStack) -> tuple[AsyncClient, ListenEngine]:
        app, client = await asyncio.to_thread(firestore_client, self.settings)
        stack.callback(firebase_admin.delete_app, app)
        await connect(client, self.settings.emulator_host or None)
        stack.push_async_callback(disconnect, client)
        options = ListenOptions(targets_per_stream=self.settings.targets_per_stream)
        return client, await stack.enter_async_context(ListenEngine(client, options))

    async def _open_realtime(self, stack: AsyncExitStack) -> RealtimeDatabase:
        settings = self.settings
        address = Address.parse(
            settings.realtime_url, emulator_host=settings.realtime_emulator_host, project=settings.project_id
        )
        tokens: Tokens = EmulatorTokens()
        if not address.emulated:
            tokens = GoogleTokens(await asyncio.to_thread(realtime_credentials, settings))
        return await stack.enter_async_context(RealtimeDatabase(address, tokens))

    async def check(self, timeout_s: float = 5.0) -> float:
        """Read one document that Firestore does not have: the seconds it took. Raises the CallError that says why."""
        began = time.monotonic()
        document = self.client.document("callboard_probe/check")
        try:
            with translated():
                async with asyncio.timeout(timeout_s):
                    await document.get(retry=None, timeout=timeout_s)
        except TimeoutError:
            raise DeadlineExceeded("Firebase did not answer in time.") from None
        return time.monotonic() - began

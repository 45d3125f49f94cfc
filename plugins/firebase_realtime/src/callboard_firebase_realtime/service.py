"""The namespace FIREBASE_REALTIME: its groups of methods in one service, and its listeners."""

from __future__ import annotations

from msgspec import Struct

from callboard import method
from callboard_firebase_realtime.channel import Channel
from callboard_firebase_realtime.chat_listener import ChatListener
from callboard_firebase_realtime.inbox import Inbox
from callboard_firebase_realtime.message_listener import MessageListener
from callboard_firebase_realtime.threads import Threads
from callboard_firebase_realtime.watching import Watching


class Connected(Struct, frozen=True):
    """The Realtime Database answered, within `read_ms` milliseconds."""

    status: str
    read_ms: int


class FirebaseRealtime(Threads, Channel, Inbox, Watching):
    """Chat threads and direct messages in the Realtime Database."""

    namespace = "FIREBASE_REALTIME"

    MessageListener = MessageListener
    ChatListener = ChatListener

    @method(effect="read", timeout_s=10)
    async def test_connection(self) -> Connected:
        """Read one node that does not exist. The error says what is wrong: UNAVAILABLE, PERMISSION_DENIED …"""
        return Connected("ok", round(await self.database.check() * 1000))

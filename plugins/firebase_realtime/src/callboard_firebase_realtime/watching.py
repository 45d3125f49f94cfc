"""Threads that somebody has open without a WebSocket: a consumer that reads Redis directly says so, again and again."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from callboard import Thread, method
from callboard.messages import check_identifier
from callboard_firebase_realtime.places import thread_path
from callboard_firebase_realtime.store import RealtimeService

OpenMode: TypeAlias = Literal["chats", "job_chats", "auto"]


class Watched(Struct, frozen=True):
    """The thread is watched for another `for_seconds`: call again within them. `channel` is where its events go."""

    user_id: str
    space_code: str
    thread_key: str
    mode: OpenMode
    for_seconds: int
    channel: str


class Unwatched(Struct, frozen=True):
    """The thread is let go, as far as this replica was asked."""

    user_id: str
    space_code: str
    thread_key: str


class Watching(RealtimeService):
    """Opens and closes threads for consumers that read Redis directly."""

    @method(effect="write", retry_safe=True, keyed=False)
    async def watch_thread(self, user_id: str, space_code: str, thread_key: str, mode: OpenMode = "auto") -> Watched:
        """Have the thread's events published for this user: `chat.sync` when its listener begins, then `chat.message`.

        Holds as long as a session does without a heartbeat (`LISTENERS_TTL_SECONDS`): repeat it at each heartbeat. A
        WebSocket that names the thread never needs it. `mode` `auto`: the kind with messages, `chats` if both. Of a
        thread that is watched already, `REGISTRY.sync` publishes the state. FAILED_PRECONDITION beyond 100 threads.
        """
        _check(user_id, space_code, thread_key)
        thread = Thread(space_code, thread_key, mode)
        for_s = self.host.settings.ttl_s
        self.host.listeners.open_thread(user_id, thread, for_s)
        channel = self.host.bus.channel_of("chat.sync", user_id, thread.place)
        return Watched(user_id, space_code, thread_key, mode, for_s, channel)

    @method(effect="write", retry_safe=True, keyed=False)
    async def unwatch_thread(self, user_id: str, space_code: str, thread_key: str) -> Unwatched:
        """Let a thread go that `watch_thread` asked for; WebSockets that have it open keep it.

        Another replica that was asked goes on until its time is over.
        """
        _check(user_id, space_code, thread_key)
        self.host.listeners.close_thread(user_id, Thread(space_code, thread_key))
        return Unwatched(user_id, space_code, thread_key)


def _check(user_id: str, space_code: str, thread_key: str) -> None:
    """InvalidArgs now, rather than a listener that cannot begin."""
    thread_path(space_code, thread_key, "chats")
    check_identifier(user_id, "user_id")

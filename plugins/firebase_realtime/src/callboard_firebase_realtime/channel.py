"""A thread's messages: read, sent, marked as read. They lie at `{space_code}/{mode}/{thread_key}/messages/{id}`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from callboard import method
from callboard.messages import check_identifier, encode
from callboard_firebase.realtime import Query, key
from callboard_firebase_realtime.chat_messages import MessageType, new_message, stored_messages
from callboard_firebase_realtime.places import Mode, children, messages_path
from callboard_firebase_realtime.store import RealtimeService, look_up

MAX_MESSAGES = 1_000
MAX_MARKED = 500

Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_MESSAGES)]
MessageIds: TypeAlias = Annotated[list[str], Meta(max_length=MAX_MARKED)]


class Channel(RealtimeService):
    """Reads and writes of chat messages."""

    @method(effect="read")
    async def get_channel_messages(
        self, space_code: str, thread_key: str, limit: Limit = 50, mode: Mode = "job_chats"
    ) -> list[dict[str, Any]]:
        """A thread's newest messages, oldest first, each as stored and with its `id`; at most `limit` (1 to 1,000).

        A thread that does not exist has none.
        """
        path = messages_path(space_code, thread_key, mode)
        return stored_messages(await self.database.get(path, Query(limit_to_last=limit)))

    @method
    async def send_realtime_message_structured(
        self,
        user_id: str,
        space_code: str,
        thread_key: str,
        text: str | None = None,
        message_type: MessageType = "MESSAGE_PINNOKIO",
        message_data: dict[str, Any] | None = None,
        mode: Mode = "job_chats",
    ) -> str:
        """Add a message to a thread, which need not exist yet; returns the message's id.

        `content` is `text`, else that of `message_data`, else empty; `sender_id` the user, `timestamp` the time here as
        ISO 8601 in UTC, `read` false. The fields of `message_data` lie beside these. At most 64 KiB.
        """
        return await self._send(user_id, space_code, thread_key, mode, message_type, text, message_data)

    @method
    async def send_speeddial_action(
        self,
        user_id: str,
        space_code: str,
        thread_key: str,
        action: str,
        message_data: dict[str, Any] | None = None,
        mode: Mode = "job_chats",
    ) -> str:
        """Add a message of type `SPEEDDIAL` whose `content` is `action`; returns its id. The rest as in
        `send_realtime_message_structured`."""
        return await self._send(user_id, space_code, thread_key, mode, "SPEEDDIAL", action, message_data)

    @method
    async def send_tools_list(
        self,
        user_id: str,
        space_code: str,
        thread_key: str,
        tools: list[Any],
        message_data: dict[str, Any] | None = None,
        mode: Mode = "job_chats",
    ) -> str:
        """Add a message of type `TOOL` whose `content` is the list as JSON text; returns its id. The rest as in
        `send_realtime_message_structured`.

        As text, because the database has no empty lists, and turns lists with gaps into maps.
        """
        content = encode(tools).decode()
        return await self._send(user_id, space_code, thread_key, mode, "TOOL", content, message_data)

    @method(effect="write", retry_safe=True)
    async def mark_chat_read(self, space_code: str, thread_key: str, message_ids: MessageIds, mode: Mode) -> int:
        """Set `read` of these messages (at most 500) to true, all at once; returns how many of them there are.

        An id without a message is passed over.
        """
        path = messages_path(space_code, thread_key, mode)
        keys = list(dict.fromkeys(map(key, message_ids)))
        found = await look_up(keys, partial(self._exists, path))
        there = [one for one, exists in zip(keys, found, strict=True) if exists]
        if there:
            await self.database.update(path, {f"{one}/read": True for one in there})
        return len(there)

    async def _exists(self, path: str, message_id: str) -> bool:
        # Names of fields alone: a message may be large. One that is deleted between this look and the write leaves a
        # `read` behind, which nothing here takes for a message; the database cannot make the write depend on more.
        return not children(await self.database.get(f"{path}/{message_id}", shallow=True)).keys() <= {"read"}

    async def _send(
        self,
        user_id: str,
        space_code: str,
        thread_key: str,
        mode: Mode,
        message_type: MessageType,
        content: str | None,
        more: dict[str, Any] | None,
    ) -> str:
        path = messages_path(space_code, thread_key, mode)
        message = new_message(check_identifier(user_id, "user_id"), message_type, content, more)
        return await self.database.push(path, message)

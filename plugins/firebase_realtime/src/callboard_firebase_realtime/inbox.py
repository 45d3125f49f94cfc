"""Direct messages between users: sent, read, deleted. They lie at `clients/{uid}/direct_message_notif/{id}`."""

from __future__ import annotations

from typing import Any

from callboard import InvalidArgs, User, method
from callboard.messages import check_identifier, utc_now
from callboard_firebase.items import company_of
from callboard_firebase.realtime import Query, key
from callboard_firebase_realtime.chat_messages import check_size
from callboard_firebase_realtime.direct_items import direct_item, is_unread
from callboard_firebase_realtime.message_listener import newest_messages
from callboard_firebase_realtime.places import children, inbox_path
from callboard_firebase_realtime.store import RealtimeService

MAX_READ = 1_000
"""Direct messages, the newest, that one call looks at."""


class Inbox(RealtimeService):
    """Sends, gets and deletes."""

    @method
    async def send_direct_message(self, user_id: str, recipient_id: str, message_data: dict[str, Any]) -> str:
        """Add a direct message to the recipient's; returns its id.

        It holds `message_data`, `sender_id` (the user) and, where `message_data` has none, a `timestamp`: the time
        here, as ISO 8601 in UTC. A `collection_id` says which company it belongs to. At most 64 KiB.
        """
        sender = check_identifier(user_id, "user_id")
        if not message_data:
            raise InvalidArgs("message_data has at least one field.")
        message = {"timestamp": utc_now(), **message_data, "sender_id": sender}
        check_size(message)
        return await self.database.push(inbox_path(recipient_id, "recipient_id"), message)

    @method(effect="write", retry_safe=True)
    async def delete_direct_message(self, user_id: str, message_id: str) -> bool:
        """Delete one of the user's direct messages; true, whether or not there was one."""
        await self.database.delete(f"{inbox_path(user_id)}/{key(message_id)}")
        return True

    @method(effect="read")
    async def get_unread_direct_messages(
        self, user_id: str, companies: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """The user's direct messages that are not marked as read, newest first, as in `msg.sync`.

        `companies`: only those whose `collection_id` is one of them. The newest 1,000 messages are looked at.
        """
        found = children(await self.database.get(inbox_path(user_id), Query(limit_to_last=MAX_READ)))
        asked_for = User(user_id, None if companies is None else frozenset(companies))
        keys = [key for key in found if is_unread(found[key]) and asked_for.may_see(company_of(found[key]))]
        newest = newest_messages(found, keys)
        return [direct_item(source.doc_id, source.data) for source in newest.sources()]

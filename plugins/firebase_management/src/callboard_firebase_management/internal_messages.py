"""What was said about a job: the documents of `clients/{uid}/task_manager/{job_id}/internal_message`.

    messages        {message id: {message, sent_to, sent_from, timestamp}}
    chat_history    {messages: [entry, …]}

Each is one document, so it has the room of one: 1 MiB. An addition that no longer fits is FAILED_PRECONDITION, and
leaves the document as it was. The job's own document need not exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

from google.cloud.firestore import SERVER_TIMESTAMP, AsyncDocumentReference

from callboard import FailedPrecondition, InvalidArgs, method
from callboard.messages import encode
from callboard_firebase import fields_from_wire, get_document, to_wire
from callboard_firebase_management.items import moment, wire_time
from callboard_firebase_management.store import FirestoreService

MAX_MESSAGE_BYTES = 256 * 1024
"""Of one message, as JSON."""


class InternalMessage(TypedDict):
    """A message as its readers see it. `timestamp` is ISO 8601, UTC, milliseconds."""

    id: str
    message: Any
    sent_to: Any
    sent_from: Any
    timestamp: str


class InternalMessages(FirestoreService):
    """Additions, which never overwrite each other, and the messages in their order."""

    @method
    async def add_message_to_internal_message(
        self, user_id: str, job_id: str, message: str | dict[str, Any], sent_to: str | list[str], sent_from: str
    ) -> str:
        """Add a message to `…/internal_message/messages`, with the server's time; returns its generated id.

        It is one write, of one field named by the id: messages added at the same moment are all kept. INVALID_ARGS:
        more than 256 KiB. FAILED_PRECONDITION: no room is left in the document.
        """
        reference = self._document(user_id, job_id, "messages")
        message_id = str(reference.parent.document().id)
        if isinstance(message, dict) and "$op" in message:
            raise InvalidArgs("message: an object with `$op` is no message")
        entry = {"message": message, "sent_to": sent_to, "sent_from": sent_from, "timestamp": SERVER_TIMESTAMP}
        fields = fields_from_wire({message_id: entry})
        if len(encode(message)) > MAX_MESSAGE_BYTES:
            raise InvalidArgs(f"message: more than {MAX_MESSAGE_BYTES} bytes")
        with _room():
            await self.put(reference, fields, merge=True)
        return message_id

    @method(effect="read")
    async def get_internal_message(self, user_id: str, job_id: str) -> list[InternalMessage]:
        """The messages about a job, the oldest first; empty when there are none.

        Messages that earlier writers numbered, with `datetime` and `send_from`, are told like the others.
        """
        found = (await get_document(self.client, self._document(user_id, job_id, "messages").path)).document
        if found is None:
            return []
        told = []
        for name, entry in found.data.items():
            if isinstance(entry, dict):
                when = moment({"timestamp": entry.get("timestamp", entry.get("datetime"))}, found.create_time)
                shown = InternalMessage(
                    id=name,
                    message=to_wire(entry.get("message")),
                    sent_to=to_wire(entry.get("sent_to")),
                    sent_from=to_wire(entry.get("sent_from", entry.get("send_from"))),
                    timestamp=wire_time(when),
                )
                told.append((when, len(name), name, shown))  # of numbers, the shorter is the lower
        return [shown for *_, shown in sorted(told, key=lambda one: one[:3])]

    @method(effect="write", retry_safe=True)
    async def upload_chat_history(self, user_id: str, job_id: str, chat_history: list[dict[str, Any] | str]) -> bool:
        """Add what is missing of a chat to the list `messages` of `…/internal_message/chat_history`; true.

        The whole history can be given each time, or what is new. An entry that is in the list already, in every
        field, is not added again: entries that may be alike need an id or a time. FAILED_PRECONDITION: no room is
        left in the document.
        """
        reference = self._document(user_id, job_id, "chat_history")
        if chat_history:
            fields = fields_from_wire({"messages": {"$op": "array_union", "values": chat_history}})
            with _room():
                await self.put(reference, fields, merge=True)
        return True

    def _document(self, user_id: str, job_id: str, name: str) -> AsyncDocumentReference:
        found: AsyncDocumentReference = self.job(user_id, job_id).collection("internal_message").document(name)
        return found


@contextmanager
def _room() -> Iterator[None]:
    """Around a write whose data has been checked: what Firestore still refuses is the document's size."""
    try:
        yield
    except InvalidArgs as error:
        raise FailedPrecondition(
            "There is no room left: one document holds all of them, and has at most 1 MiB."
        ) from error

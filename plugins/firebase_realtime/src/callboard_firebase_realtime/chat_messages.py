"""Chat messages: what is stored of one that is sent, and how stored ones are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from callboard import InvalidArgs
from callboard.messages import encode, utc_now
from callboard_firebase import shorten
from callboard_firebase.items import short_text
from callboard_firebase_realtime.places import children, key_order

MAX_SENT_BYTES = 64 * 1024
"""Of a message, as JSON: what is sent fits into an event, with the events' other messages."""
MAX_SHOWN_BYTES = 96 * 1024
"""Of a message in an event. One that others wrote may be larger: it is shown cut, and `truncated`."""

MessageType: TypeAlias = Literal[
    "MESSAGE", "CARD", "TOOL", "CMMD", "MESSAGE_PINNOKIO", "CARD_CLICKED_PINNOKIO", "SPEEDDIAL"
]
_FIELDS = ("sender_id", "timestamp", "message_type", "read")


def new_message(
    sender_id: str, message_type: MessageType, content: str | None, more: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What to store: the fields of CONTRACT, and `more` beside them, which cannot replace them.

    `content` of None: that of `more`, else empty. `timestamp` is the time here, ISO 8601 in UTC. InvalidArgs: too
    large.
    """
    given = dict(more or {})
    message = {
        **given,
        "content": content if content is not None else given.get("content") or "",
        "sender_id": sender_id,
        "timestamp": utc_now(),
        "message_type": message_type,
        "read": False,
    }
    check_size(message)
    return message


def check_size(message: Mapping[str, Any]) -> None:
    if len(encode(message)) > MAX_SENT_BYTES:
        raise InvalidArgs(f"A message has at most {MAX_SENT_BYTES // 1024} KiB, as JSON.")


def is_message(value: Any) -> bool:
    """Whether there is a message: a `read` alone is what is left where one was marked while another deleted it."""
    return value is not None and not (isinstance(value, dict) and value.keys() <= {"read"})


def stored_messages(node: Any) -> list[dict[str, Any]]:
    """The messages of a thread's node, oldest first, each as stored and with its `id`."""
    found = children(node)
    return [with_id(key, found[key]) for key in sorted(found, key=key_order) if is_message(found[key])]


def with_id(message_id: str, value: Any) -> dict[str, Any]:
    """A stored message and its `id`. What is no map is the `content` of one."""
    return {**value, "id": message_id} if isinstance(value, dict) else {"content": value, "id": message_id}


def shown(message_id: str, value: Any) -> dict[str, Any]:
    """`with_id`, cut to what an event can carry: a huge one keeps the fields of CONTRACT, cut, and is `truncated`."""
    message = with_id(message_id, value)
    if len(encode(message)) <= MAX_SHOWN_BYTES:
        return message
    content = message.get("content")
    text = content if isinstance(content, str) else encode(content).decode()
    kept: dict[str, Any] = {
        name: field if isinstance(field, bool | int | float) else short_text(field)
        for name in _FIELDS
        if (field := message.get(name)) is not None
    }
    return {**kept, "content": shorten(text, MAX_SENT_BYTES), "id": message_id, "truncated": True}


def parcels(messages: Iterable[dict[str, Any]], max_bytes: int) -> list[list[dict[str, Any]]]:
    """The messages in their order, as few lists as keep below `max_bytes` of JSON each."""
    found: list[list[dict[str, Any]]] = []
    room = 0
    for message in messages:
        size = len(encode(message)) + 1
        if not found or size > room:
            found.append([])
            room = max_bytes
        found[-1].append(message)
        room -= size
    return found

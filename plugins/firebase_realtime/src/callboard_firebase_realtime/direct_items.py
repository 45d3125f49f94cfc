"""Direct messages as calls and events show them (CONTRACT, Events)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from callboard.messages import encode
from callboard_firebase.items import job_item, short_text
from callboard_firebase_realtime.places import made_at, time_of

MAX_MORE_BYTES = 16 * 1024
"""Of a message's fields beside an item's own, as JSON; more of them are left out, all together."""

_NEVER = frozenset({"read", "info_message"})


def is_unread(value: Any) -> bool:
    """Whether this is a message that has not been read: deleted is what most readers do with one they have read."""
    return isinstance(value, dict) and value.get("read") is not True and not value.keys() <= _NEVER


def direct_item(message_id: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A direct message's item: a notification's without `read` and `info_message`, and what else the message holds.

    `message` is "{file_name} - {status}"; the message's own text where it names neither. `timestamp` is, where the
    message has none that can be read, when its id was made.
    """
    item = job_item(message_id, with_time(value), made_at(message_id))
    if not value.get("file_name") and not value.get("status"):
        item["message"] = short_text(value.get("message"), item["message"])
    more = {name: field for name, field in value.items() if name not in item and name not in _NEVER}
    if len(encode(more)) > MAX_MORE_BYTES:
        more = {}
    return {**more, **item}


def with_time(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with a `timestamp` in milliseconds, as the database's own clock writes it, as a time."""
    stamp = value.get("timestamp")
    if isinstance(stamp, int | float) and not isinstance(stamp, bool):
        when: datetime | None = time_of(stamp)
        return {**value, "timestamp": when}
    return value

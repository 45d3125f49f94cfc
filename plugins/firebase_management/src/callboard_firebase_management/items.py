"""The notification item (CONTRACT, Events): what a document of `clients/{uid}/notifications` looks like on the wire.

Documents are written by many programs. Whatever a document holds, it becomes an item with every field of the right
type: a field that is missing or of an odd type takes its default.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec

from callboard import User
from callboard_firebase import shorten, to_wire

MAX_TEXT_BYTES = 8 * 1024
"""Of one text of an item, as JSON. A longer one ends with `…`; `get_document` has it whole. So an item has at most
100 KiB, and fits into an event (256 KiB), whatever its document holds (up to 1 MiB)."""


class Item(TypedDict):
    """A notification as consumers see it. `timestamp` is ISO 8601, UTC, milliseconds."""

    doc_id: str
    job_id: str
    file_id: str
    file_name: str
    collection_id: str
    collection_name: str
    function_name: str
    status: str
    message: str
    url: str
    read: bool
    timestamp: str
    additional_info: str
    info_message: str


def notification_item(doc_id: str, data: Mapping[str, Any], written_at: datetime) -> Item:
    """The item of a document. `written_at`, its update time, stands in for a missing or unreadable timestamp.

    `job_id` defaults to the document's id. `info_message` is the `error_message`, else the `message`, inside an
    `additional_info` that is a map or the JSON text of one.
    """
    file_name = _short(data.get("file_name"), "Document")
    status = _short(data.get("status"), "info")
    job_id = _short(data.get("job_id"), doc_id)
    additional_info = data.get("additional_info")
    return Item(
        doc_id=doc_id,
        job_id=job_id,
        file_id=_short(data.get("file_id")),
        file_name=file_name,
        collection_id=shorten(company_of(data), MAX_TEXT_BYTES),
        collection_name=_short(data.get("collection_name")),
        function_name=_short(data.get("function_name")),
        status=status,
        message=f"{file_name} - {status}",
        url=f"/edit_form/{job_id}",
        read=data.get("read") is True,
        timestamp=wire_time(moment(data, written_at)),
        additional_info=shorten(_info_text(additional_info), MAX_TEXT_BYTES),
        info_message=_info_message(additional_info),
    )


def company_of(data: Mapping[str, Any]) -> str:
    """The company a notification belongs to, which `User.may_see` judges; empty for none."""
    return _text(data.get("collection_id"))


def moment(data: Mapping[str, Any], written_at: datetime) -> datetime:
    """When a notification happened: its `timestamp` (a Firestore Timestamp or ISO 8601 text), else `written_at`."""
    value = data.get("timestamp")
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass  # text that is no time, or a time at the edge of the calendar
    return written_at


def wire_time(when: datetime) -> str:
    """A time as events show it: `2025-09-20T11:44:00.000Z`. The rest of the millisecond is cut off, not rounded."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Newest:
    """Of the notifications it is shown and `user` may see: keeps the newest `limit`, counts all."""

    def __init__(self, limit: int, user: User | None = None) -> None:
        self.total = 0
        self._limit = limit
        self._user = user
        self._heap: list[tuple[datetime, str, Mapping[str, Any], datetime]] = []

    def add(self, doc_id: str, data: Mapping[str, Any], written_at: datetime) -> bool:
        """Show it one; whether the user may see it."""
        if self._user is not None and not self._user.may_see(company_of(data)):
            return False
        self.total += 1
        entry = (moment(data, written_at), doc_id, data, written_at)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)
        return True

    def items(self) -> Iterator[Item]:
        """Newest first; of equal times, the greater document id first. Each is made when it is asked for."""
        for _, doc_id, data, written_at in sorted(self._heap, key=lambda entry: entry[:2], reverse=True):
            yield notification_item(doc_id, data, written_at)


def _text(value: object, default: str = "") -> str:
    if isinstance(value, str):
        return value or default
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return default


def _short(value: object, default: str = "") -> str:
    return shorten(_text(value, default), MAX_TEXT_BYTES)


def _info_text(additional_info: object) -> str:
    if additional_info is None or isinstance(additional_info, str):
        return additional_info or ""
    return msgspec.json.encode(to_wire(additional_info)).decode()


def _info_message(additional_info: object) -> str:
    if isinstance(additional_info, str):
        try:
            additional_info = msgspec.json.decode(additional_info)
        except (msgspec.DecodeError, RecursionError):
            return ""  # free text
    if not isinstance(additional_info, dict):
        return ""
    return _short(additional_info.get("error_message")) or _short(additional_info.get("message"))

"""The item (CONTRACT, Events): how a job is shown, be it a notification in Firestore or a direct message.

Sources are written by many programs. Whatever one holds, it becomes an item with every field of the right type: a
field that is missing or of an odd type takes its default.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypedDict, TypeVar

import msgspec

from callboard import User
from callboard.messages import encode
from callboard_firebase.sizes import shorten
from callboard_firebase.values import to_wire

MAX_TEXT_BYTES = 8 * 1024
"""Of one text of an item, as JSON. A longer one ends with `…`. So an item has at most 100 KiB, and fits into an event
(256 KiB), whatever its source holds."""
SYNC_LIMIT = 500
SYNC_BYTES = 200 * 1024
"""Items in one sync, and their size: the oldest beyond either are left out, and a `count` tells how many there are. The
bus carries 256 KiB; the rest is for the event around them."""

T = TypeVar("T")


class JobItem(TypedDict):
    """What notifications and direct messages have in common. `timestamp` is ISO 8601, UTC, milliseconds."""

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
    timestamp: str
    additional_info: str


class Source(NamedTuple):
    """What an item is made of: where it lies, what is there, and when it was written."""

    doc_id: str
    data: Mapping[str, Any]
    written_at: datetime


def job_item(doc_id: str, data: Mapping[str, Any], written_at: datetime) -> JobItem:
    """The item of a source. `written_at` stands in for a missing or unreadable timestamp, `doc_id` for a `job_id`."""
    file_name = short_text(data.get("file_name"), "Document")
    status = short_text(data.get("status"), "info")
    job_id = short_text(data.get("job_id"), doc_id)
    return JobItem(
        doc_id=doc_id,
        job_id=job_id,
        file_id=short_text(data.get("file_id")),
        file_name=file_name,
        collection_id=shorten(company_of(data), MAX_TEXT_BYTES),
        collection_name=short_text(data.get("collection_name")),
        function_name=short_text(data.get("function_name")),
        status=status,
        message=f"{file_name} - {status}",
        url=f"/edit_form/{job_id}",
        timestamp=wire_time(moment(data, written_at)),
        additional_info=shorten(_info_text(data.get("additional_info")), MAX_TEXT_BYTES),
    )


def company_of(data: Mapping[str, Any]) -> str:
    """The company that an item belongs to, which `User.may_see` judges; empty for none."""
    return _text(data.get("collection_id"))


def moment(data: Mapping[str, Any], written_at: datetime) -> datetime:
    """When it happened: its `timestamp` (a time, or ISO 8601 text), else `written_at`."""
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


def short_text(value: object, default: str = "") -> str:
    """A field of an item: a text or a number as text, cut to `MAX_TEXT_BYTES`; else `default`."""
    return shorten(_text(value, default), MAX_TEXT_BYTES)


class NewestSources:
    """Of the sources it is shown and `user` may see: keeps the newest `limit`, counts all."""

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

    def sources(self) -> Iterator[Source]:
        """Newest first; of equal times, the greater id first."""
        for _, doc_id, data, written_at in sorted(self._heap, key=lambda entry: entry[:2], reverse=True):
            yield Source(doc_id, data, written_at)


def fitting(items: Iterable[T], max_bytes: int = SYNC_BYTES) -> list[T]:
    """As many as fit into `max_bytes` of JSON, from the first on; no more of them are made than that."""
    kept: list[T] = []
    room = max_bytes
    for item in items:
        room -= len(encode(item)) + 1  # and the comma
        if room < 0:
            break
        kept.append(item)
    return kept


def _text(value: object, default: str = "") -> str:
    if isinstance(value, str):
        return value or default
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return default


def _info_text(additional_info: object) -> str:
    if additional_info is None or isinstance(additional_info, str):
        return additional_info or ""
    return msgspec.json.encode(to_wire(additional_info)).decode()

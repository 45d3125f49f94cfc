"""The notification item (CONTRACT, Events): what a document of `clients/{uid}/notifications` looks like on the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from callboard_firebase.items import (
    MAX_TEXT_BYTES,
    JobItem,
    NewestSources,
    company_of,
    job_item,
    moment,
    short_text,
    wire_time,
)

__all__ = ["MAX_TEXT_BYTES", "Item", "Newest", "company_of", "moment", "notification_item", "wire_time"]


class Item(JobItem):
    """A notification as consumers see it. `timestamp` is ISO 8601, UTC, milliseconds."""

    read: bool
    info_message: str


def notification_item(doc_id: str, data: Mapping[str, Any], written_at: datetime) -> Item:
    """The item of a document. `written_at`, its update time, stands in for a missing or unreadable timestamp.

    `job_id` defaults to the document's id. `info_message` is the `error_message`, else the `message`, inside an
    `additional_info` that is a map or the JSON text of one. `get_document` has whole what is cut here.
    """
    return Item(
        **job_item(doc_id, data, written_at),
        read=data.get("read") is True,
        info_message=_info_message(data.get("additional_info")),
    )


class Newest(NewestSources):
    """Of the notifications it is shown and the user may see: keeps the newest, counts all."""

    def items(self) -> Iterator[Item]:
        """Newest first; of equal times, the greater document id first. Each is made when it is asked for."""
        for source in self.sources():
            yield notification_item(*source)


def _info_message(additional_info: object) -> str:
    if isinstance(additional_info, str):
        try:
            additional_info = msgspec.json.decode(additional_info)
        except (msgspec.DecodeError, RecursionError):
            return ""  # free text
    if not isinstance(additional_info, dict):
        return ""
    return short_text(additional_info.get("error_message")) or short_text(additional_info.get("message"))

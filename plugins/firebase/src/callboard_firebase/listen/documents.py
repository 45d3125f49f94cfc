"""What a watch yields: documents, changes, batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1 import _helpers
from google.cloud.firestore_v1.bson import BSONType
from google.cloud.firestore_v1.vector import Vector


@dataclass(frozen=True, slots=True)
class Document:
    """A document as the server holds it. `data` has Google's own Python types; `values.to_wire` makes it JSON.

    `path` is relative to the database: `clients/demo/notifications/job1`. A reference into another database, for which
    the client has no type, stays the text `projects/…/documents/…`.
    """

    path: str
    id: str
    data: dict[str, Any]
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """One document that came, changed or went. For `removed`, the document as this watch last yielded it; one that came
    and went between two batches is `removed` without having been `added`, for those who read it elsewhere meanwhile.

    `several`: it happened in more than one step, and whoever read the document elsewhere may have seen one between.
    """

    kind: Literal["added", "modified", "removed"]
    document: Document
    several: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """One consistent state of a watch, and how it differs from the batch before.

    `documents` is the whole current result by path, which no later event alters; its order is not the query's.
    The first batch of a watch has `initial=True` and every document in it as an added change.
    """

    initial: bool
    changes: tuple[Change, ...]
    documents: Mapping[str, Document]
    read_time: datetime


def timestamp(wire: Any) -> datetime:
    """A protobuf Timestamp as an aware datetime; Firestore's own precision is the microsecond."""
    return wire.ToDatetime(tzinfo=UTC)


def decode(wire: Any, path: str, client: AsyncClient) -> Document:
    """A raw `google.firestore.v1.Document` message as a `Document`."""
    return Document(
        path=path,
        id=path.rpartition("/")[2],
        data={key: _decode_value(value, client) for key, value in wire.fields.items()},
        create_time=timestamp(wire.create_time),
        update_time=timestamp(wire.update_time),
    )


def _decode_value(wire: Any, client: AsyncClient) -> Any:
    # Google's own decoder raises for a reference into another database: one such field, anywhere in a collection,
    # would stop its watch for good. So containers and references are walked here, leaves there.
    kind = wire.WhichOneof("value_type")
    if kind == "map_value":
        return _decode_map(wire.map_value.fields, client)
    if kind == "array_value":
        return [_decode_value(value, client) for value in wire.array_value.values]
    if kind == "reference_value":
        name: str = wire.reference_value
        prefix = f"{client._database_string}/documents/"
        return client.document(name[len(prefix) :]) if name.startswith(prefix) else name
    return _helpers.decode_value(wire, client)


def _decode_map(fields: Any, client: AsyncClient) -> Any:
    decoded = {key: _decode_value(value, client) for key, value in fields.items()}
    if decoded.get("__type__") == "__vector__" and isinstance(decoded.get("value"), list):
        return Vector(decoded["value"])
    if len(decoded) == 1:
        bson = BSONType._from_dict(decoded)
        if bson is not None:
            return bson
    return decoded

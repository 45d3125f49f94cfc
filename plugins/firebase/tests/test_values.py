# mypy: allow-untyped-calls
"""Values to JSON and back, and the sentinels."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from google.api_core.datetime_helpers import DatetimeWithNanoseconds
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    AsyncClient,
    GeoPoint,
    Increment,
)
from google.cloud.firestore_v1.bson import BSONObjectId
from google.cloud.firestore_v1.vector import Vector

from callboard.errors import InvalidArgs
from callboard_firebase import fields_from_wire, from_wire, to_wire
from callboard_firebase.values import MAX_DEPTH


class Colour(Enum):
    RED = "red"


def nested(depth: int, wrap: Callable[[Any], Any] = lambda inner: {"in": inner}) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (None, None),
        (True, True),
        (2**62, 2**62),
        (1.5, 1.5),
        ("text", "text"),
        (datetime(2025, 9, 20, 11, 44, tzinfo=UTC), "2025-09-20T11:44:00Z"),
        (datetime(2025, 9, 20, 11, 44, 0, 5, tzinfo=UTC), "2025-09-20T11:44:00.000005Z"),
        (datetime(2025, 9, 20, 13, 44, tzinfo=timezone(timedelta(hours=2))), "2025-09-20T11:44:00Z"),
        (datetime(2025, 9, 20, 11, 44), "2025-09-20T11:44:00Z"),
        (
            DatetimeWithNanoseconds(2025, 9, 20, 11, 44, nanosecond=123456789, tzinfo=UTC),
            "2025-09-20T11:44:00.123456Z",
        ),
        (date(2025, 9, 20), "2025-09-20"),
        (GeoPoint(46.2, 6.1), {"latitude": 46.2, "longitude": 6.1}),
        (b"\x00\xff", "AP8="),
        (Vector([1, 2]), [1.0, 2.0]),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (Decimal("10.10"), "10.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (BSONObjectId("507f191e810c19729de860ea"), {"__oid__": "507f191e810c19729de860ea"}),
        ({"a": [b"", {"b": (1, None)}]}, {"a": ["", {"b": [1, None]}]}),
    ],
    ids=repr,
)
def test_to_wire(value: Any, wire: Any) -> None:
    assert to_wire(value) == wire
    json.dumps(to_wire(value), allow_nan=False)


def test_a_reference_is_its_path() -> None:
    client = AsyncClient(project="demo", credentials=AnonymousCredentials())
    assert to_wire({"r": client.document("clients/demo")}) == {"r": "clients/demo"}


def test_what_has_no_form_in_json_is_refused() -> None:
    with pytest.raises(InvalidArgs):
        to_wire(object())
    with pytest.raises(InvalidArgs):
        to_wire(nested(MAX_DEPTH + 1))
    with pytest.raises(InvalidArgs):
        to_wire(nested(100_000, lambda inner: [inner]))
    assert to_wire(nested(MAX_DEPTH)) == nested(MAX_DEPTH)


def test_sentinels_become_googles() -> None:
    fields = fields_from_wire(
        {
            "at": {"$op": "server_timestamp"},
            "old": {"$op": "delete"},
            "count": {"$op": "increment", "by": -2},
            "share": {"$op": "increment", "by": 0.5},
            "tags": {"$op": "array_union", "values": ["a", {"b": 1}]},
            "deep": {"er": {"$op": "array_remove", "values": [None]}},
        }
    )
    assert fields["at"] is SERVER_TIMESTAMP
    assert fields["old"] is DELETE_FIELD
    assert fields["count"] == Increment(-2)
    assert fields["share"] == Increment(0.5)
    assert fields["tags"] == ArrayUnion(["a", {"b": 1}])
    assert fields["deep"]["er"] == ArrayRemove([None])


@pytest.mark.parametrize(
    "bad",
    [
        {"$op": "explode"},
        {"$op": None},
        {"$op": ["delete"]},
        {"$op": "delete", "more": 1},
        {"$op": "server_timestamp", "by": 1},
        {"$op": "increment"},
        {"$op": "increment", "by": "1"},
        {"$op": "increment", "by": True},
        {"$op": "increment", "by": float("nan")},
        {"$op": "increment", "by": 2**63},
        {"$op": "increment", "by": 1, "values": []},
        {"$op": "array_union"},
        {"$op": "array_union", "values": []},
        {"$op": "array_union", "values": "ab"},
        {"$op": "array_union", "values": [[1]]},
        {"$op": "array_union", "values": [{"$op": "delete"}]},
        {"$op": "array_remove", "values": [SERVER_TIMESTAMP]},
        {"$op": "array_union", "values": [{"at": {"$op": "server_timestamp"}}]},
        [{"$op": "delete"}],
        [DELETE_FIELD],
        [{"a": {"b": {"$op": "increment", "by": 1}}}],
        [{"at": SERVER_TIMESTAMP}],
    ],
    ids=repr,
)
def test_malformed_sentinels_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgs):
        from_wire({"field": bad})


@pytest.mark.parametrize(
    "bad",
    [
        {"": 1},
        {"__name__": 1},
        {"a": {"____": 1}},
        {7: 1},
        {"\ud800": 1},
        {"k" * 1_501: 1},
        {"a": "\udfff"},
        {"a": 2**63},
        {"a": -(2**63) - 1},
        {"a": [[1]]},
        {"a": Decimal("1.10")},
        {"a": {1, 2}},
        {"a": object()},
        {"a": date(2025, 9, 20)},
        nested(MAX_DEPTH + 1),
        {"a": nested(100_000)},
    ],
    ids=lambda bad: repr(bad)[:40] if len(str(type(bad))) < 40 and not isinstance(bad, dict) else None,
)
def test_what_firestore_does_not_store_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgs) as caught:
        from_wire(bad)
    caught.value.message.encode()
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("bad", [None, [], "text", 1, {"$op": "delete"}])
def test_a_document_is_an_object(bad: Any) -> None:
    with pytest.raises(InvalidArgs):
        fields_from_wire(bad)


def test_googles_own_types_pass() -> None:
    when = datetime(2025, 9, 20, tzinfo=UTC)
    value = {"p": GeoPoint(1, 2), "v": Vector([1.0]), "b": b"x", "t": when, "s": SERVER_TIMESTAMP, "i": Increment(1)}
    assert from_wire(value) == value
    assert from_wire(datetime(2025, 9, 20)) == when


def test_the_argument_is_never_altered() -> None:
    value: dict[str, Any] = {"a": [1, {"c": None}], "b": {"$op": "array_union", "values": [1]}, "d": {"e": [1.5]}}
    before = copy.deepcopy(value)
    fields = fields_from_wire(value)
    fields["a"].append(2)
    fields["a"][1]["c"] = 1
    fields["d"]["e"].append(1)
    assert value == before
    wire = to_wire(value)
    wire["d"]["e"].append(1)
    assert value == before

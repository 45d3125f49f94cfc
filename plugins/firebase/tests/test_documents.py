# mypy: allow-untyped-calls
"""Decoding documents: every type that Google's own decoder knows, and one that it trips over."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import AsyncClient, GeoPoint
from google.cloud.firestore_v1 import _helpers
from google.cloud.firestore_v1.bson import BSONObjectId
from google.cloud.firestore_v1.types import Document as WireDocument
from google.cloud.firestore_v1.vector import Vector

from callboard_firebase.listen.documents import decode

CLIENT = AsyncClient(project="demo", credentials=AnonymousCredentials())


def roundtrip(fields: dict[str, Any]) -> dict[str, Any]:
    wire = WireDocument(name="projects/demo/databases/(default)/documents/a/b", fields=_helpers.encode_dict(fields))
    return decode(wire._pb, "a/b", CLIENT).data


def test_every_type_comes_back() -> None:
    fields = {
        "none": None,
        "yes": True,
        "int": 2**62,
        "float": 0.5,
        "text": "é",
        "bytes": b"\x00",
        "when": datetime(2025, 9, 20, 11, 44, 0, 5, tzinfo=UTC),
        "where": GeoPoint(46.2, 6.1),
        "list": [1, {"deep": [None]}],
        "map": {},
        "vector": Vector([1.0]),
        "reference": CLIENT.document("a/b"),
        "id": BSONObjectId("507f191e810c19729de860ea"),
        "one key": {"key": 1},
    }
    assert roundtrip(fields) == fields


def test_a_reference_into_another_database_stays_text() -> None:
    other = AsyncClient(project="other", credentials=AnonymousCredentials()).document("x/y")
    assert roundtrip({"r": other}) == {"r": "projects/other/databases/(default)/documents/x/y"}

"""What may be written, and as what."""

from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.errors import InvalidArgs
from callboard_firebase.realtime.values import encode, encode_update

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text("abc é%", min_size=1), inner)),
    max_leaves=10,
)


@given(JSON)
def test_json_is_written_as_it_is(value: Any) -> None:
    body = encode(value)
    assert json.loads(body.content) == value
    assert body.repeatable


@pytest.mark.parametrize(
    ("value", "wire", "repeatable"),
    [
        ({".sv": "timestamp"}, {".sv": "timestamp"}, True),
        ({"$op": "server_timestamp"}, {".sv": "timestamp"}, True),
        ({"$op": "delete"}, None, True),
        ({"a": [{".sv": {"increment": 2}}]}, {"a": [{".sv": {"increment": 2}}]}, False),
        ({"a": {"$op": "increment", "by": -1.5}}, {"a": {".sv": {"increment": -1.5}}}, False),
        ((1, 2), [1, 2], True),
    ],
)
def test_server_values(value: Any, wire: Any, repeatable: bool) -> None:
    body = encode(value)
    assert (json.loads(body.content), body.repeatable) == (wire, repeatable)
    update = encode_update({"a/b": value, "c": 1})
    assert (json.loads(update.content), update.repeatable) == ({"a/b": wire, "c": 1}, repeatable)


def nested(levels: int) -> Any:
    return {"a": nested(levels - 1)} if levels else 1


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**53 + 1,
        -(2**53) - 1,
        "\ud800",
        {"\ud800": 1},
        {"a.b": 1},
        {"a/b": 1},
        {"": 1},
        {"$x": 1},
        {1: 1},
        {"k" * 769: 1},
        b"bytes",
        decimal.Decimal(1),
        datetime.datetime(2025, 1, 1),
        {1, 2},
        object(),
        {".sv": "other"},
        {".sv": "timestamp", "a": 1},
        {".sv": {"increment": "1"}},
        {".sv": {"increment": True}},
        {".sv": {"increment": float("nan")}},
        {"$op": "array_union", "values": [1]},
        {"$op": "increment"},
        {"$op": "increment", "by": 2**60},
        {"$op": "increment", "by": True},
        {"$op": "delete", "a": 1},
        {".priority": 1, ".value": 2},
        nested(33),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_database_would_refuse_or_change_is_refused(value: Any) -> None:
    for wrapped in (value, [value], {"a": {"b": value}}):
        with pytest.raises(InvalidArgs):
            encode(wrapped)
        with pytest.raises(InvalidArgs):
            encode_update({"a": wrapped})


def test_the_deepest_value_there_may_be() -> None:
    assert encode(nested(32)).repeatable

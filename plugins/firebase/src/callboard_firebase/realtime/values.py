"""What is written, as the bytes of a request.

Refused is what the database would refuse or silently change: keys it does not have, texts that are no Unicode, numbers
that a double cannot hold, NaN, anything that is not JSON. Server values are Google's own, `{".sv": "timestamp"}` and
`{".sv": {"increment": 1}}`, or the wire's: `{"$op": "server_timestamp"}`, `{"$op": "increment", "by": 1}`,
`{"$op": "delete"}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from callboard.errors import InvalidArgs
from callboard_firebase.realtime.paths import MAX_DEPTH, key

_EXACT = 2**53


class Body(msgspec.Struct, frozen=True):
    """`repeatable`: sent twice it leaves the same state, which an increment does not."""

    content: bytes
    repeatable: bool


def encode(value: Any) -> Body:
    """The body that writes a value; InvalidArgs."""
    converted, increments = _convert(value, 0)
    return _body(converted, increments)


def encode_update(values: Mapping[str, Any]) -> Body:
    """The body that writes values at paths (`a`, `a/b`) below a node, the paths checked already."""
    converted = {path: _convert(value, path.count("/") + 1) for path, value in values.items()}
    return _body({path: pair[0] for path, pair in converted.items()}, any(pair[1] for pair in converted.values()))


def _body(converted: Any, increments: bool) -> Body:
    try:
        return Body(msgspec.json.encode(converted), not increments)
    except UnicodeEncodeError:
        raise InvalidArgs("A text holds half a surrogate pair.") from None


def _convert(value: Any, depth: int) -> tuple[Any, bool]:
    """The value as Google has it, and whether it increments anything."""
    if value is None or isinstance(value, (bool, str)):
        return value, False
    if isinstance(value, (int, float)):
        return _number(value), False
    if depth >= MAX_DEPTH:
        raise InvalidArgs(f"A value has at most {MAX_DEPTH} levels.")
    if isinstance(value, Mapping):
        if "$op" in value:
            return _operation(value)
        if ".sv" in value:
            return _server_value(value)
        pairs = {key(name): _convert(child, depth + 1) for name, child in value.items()}
        return {name: pair[0] for name, pair in pairs.items()}, any(pair[1] for pair in pairs.values())
    if isinstance(value, (list, tuple)):
        items = [_convert(child, depth + 1) for child in value]
        return [item[0] for item in items], any(item[1] for item in items)
    raise InvalidArgs(f"The Realtime Database holds JSON, not a {type(value).__name__}.")


def _number(value: Any) -> int | float:
    if isinstance(value, int):
        if abs(value) > _EXACT:
            raise InvalidArgs("The Realtime Database rounds integers beyond 2^53: use a text.")
    elif not math.isfinite(value):
        raise InvalidArgs("The Realtime Database has no NaN and no infinity.")
    return value


def _operation(value: Mapping[str, Any]) -> tuple[Any, bool]:
    match dict(value):
        case {"$op": "server_timestamp", **rest} if not rest:
            return {".sv": "timestamp"}, False
        case {"$op": "delete", **rest} if not rest:
            return None, False
        case {"$op": "increment", "by": int() | float() as by, **rest} if not rest and not isinstance(by, bool):
            return {".sv": {"increment": _number(by)}}, True
    raise InvalidArgs("The Realtime Database knows the operations server_timestamp, increment and delete.")


def _server_value(value: Mapping[str, Any]) -> tuple[Any, bool]:
    match dict(value):
        case {".sv": "timestamp", **rest} if not rest:
            return {".sv": "timestamp"}, False
        case {".sv": {"increment": int() | float() as by, **more}, **rest} if not (
            rest or more or isinstance(by, bool)
        ):
            return {".sv": {"increment": _number(by)}}, True
    raise InvalidArgs('A server value is {".sv": "timestamp"} or {".sv": {"increment": …}}.')

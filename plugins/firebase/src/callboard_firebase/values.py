"""Values between the wire (JSON) and Firestore's Python types.

| Firestore            | `to_wire`                                                                    |
|----------------------|------------------------------------------------------------------------------|
| timestamp            | ISO 8601 in UTC, microseconds only when there are any: `2025-09-20T11:44:00Z` |
| geographical point   | `{"latitude": …, "longitude": …}`                                            |
| reference            | its path: `clients/demo`                                                     |
| bytes                | base64                                                                       |
| vector               | a list of numbers                                                            |
| NaN, ±Infinity       | `"NaN"`, `"Infinity"`, `"-Infinity"` (JSON has no such numbers)               |
| Decimal              | its digits as text (Firestore stores none; a plugin's own value can be one)  |

`from_wire` turns JSON into what Google's client writes, above all the sentinels:

    {"$op": "server_timestamp"}                 {"$op": "array_union", "values": […]}
    {"$op": "delete"}                           {"$op": "array_remove", "values": […]}
    {"$op": "increment", "by": n}

It takes Google's own types as they are, so that a plugin can mix the two. A Decimal is refused, not rounded: money is
stored as an integer of minor units, or as text. Neither function alters its argument.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from google.cloud.firestore import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    GeoPoint,
    Increment,
)
from google.cloud.firestore_v1.base_document import BaseDocumentReference
from google.cloud.firestore_v1.bson import BSONType
from google.cloud.firestore_v1.transforms import Sentinel, _NumericValue, _ValueList
from google.cloud.firestore_v1.vector import Vector

from callboard.errors import InvalidArgs

MAX_DEPTH = 20
"""Maps and arrays in one another; Firestore's own limit."""

MAX_KEY_BYTES = 1_500

_RESERVED_KEY = re.compile(r"__.*__", re.DOTALL)
_NATIVE = (bytes, GeoPoint, Vector, BSONType, BaseDocumentReference)
_SENTINELS = (Sentinel, _ValueList, _NumericValue)


def to_wire(value: Any, *, _depth: int = 0) -> Any:
    """`value` as JSON can hold it (see the table). InvalidArgs: a type that has no form there, or nesting too deep."""
    if value is None or isinstance(value, (str, bool)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Mapping):
        _check_depth(_depth)
        return {str(key): to_wire(item, _depth=_depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, Vector)):
        _check_depth(_depth)
        return [to_wire(item, _depth=_depth + 1) for item in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _float_to_wire(value)
    return _scalar_to_wire(value, _depth)


def _float_to_wire(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)


def _scalar_to_wire(value: Any, depth: int) -> Any:
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        moment = aware.astimezone(UTC).replace(tzinfo=None)
        return datetime.isoformat(moment) + "Z"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, GeoPoint):
        return {"latitude": value.latitude, "longitude": value.longitude}
    if isinstance(value, BaseDocumentReference):
        return value.path
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, Enum):
        return to_wire(value.value, _depth=depth)
    if isinstance(value, BSONType):
        return to_wire(value._to_map_value(), _depth=depth)
    raise InvalidArgs(f"A value of type {type(value).__name__} has no form in JSON.")


def from_wire(value: Any) -> Any:
    """`value` as Google's client writes it, sentinels included. InvalidArgs says where and why it cannot be stored."""
    return _from_wire(value, "the value", 0)


def fields_from_wire(data: Any) -> dict[str, Any]:
    """The fields of a document from JSON: as `from_wire`, and the top is a plain object."""
    if not isinstance(data, Mapping) or "$op" in data:
        raise InvalidArgs("A document's data is an object of fields.")
    fields: dict[str, Any] = _from_wire(data, "the data", 0)
    return fields


def _from_wire(value: Any, where: str, depth: int, *, in_array: bool = False, below_array: bool = False) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int):
        return _integer(value, where)
    if isinstance(value, float):
        return value
    if isinstance(value, Mapping):
        _check_depth(depth)
        if "$op" in value:
            if below_array:
                raise InvalidArgs(f"In {where}: a sentinel cannot stand inside an array.")
            return _sentinel(value, where, depth)
        return {
            _key(key, where): _from_wire(item, f"`{str(key)[:60]}`", depth + 1, below_array=below_array)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return _array(value, where, depth, in_array=in_array)
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    if isinstance(value, _SENTINELS) and below_array:
        raise InvalidArgs(f"In {where}: a sentinel cannot stand inside an array.")
    if isinstance(value, _NATIVE + _SENTINELS):
        return value
    raise InvalidArgs(f"In {where}: Firestore stores no {type(value).__name__}.")


def _array(value: list[Any] | tuple[Any, ...], where: str, depth: int, *, in_array: bool) -> list[Any]:
    _check_depth(depth)
    if in_array:
        raise InvalidArgs(f"In {where}: Firestore stores no array directly inside an array.")
    return [_from_wire(item, where, depth + 1, in_array=True, below_array=True) for item in value]


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgs(f"In {where}: the text is not valid Unicode: it holds half a surrogate pair.") from None
    return value


def _integer(value: int, where: str) -> int:
    if not -(2**63) <= value < 2**63:
        raise InvalidArgs(f"In {where}: the integer does not fit into 64 bits.")
    return value


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidArgs(f"In {where}: a field's name is a text, and not empty.")
    _text(key, f"a field's name in {where}")
    if _RESERVED_KEY.fullmatch(key):
        raise InvalidArgs(f"In {where}: field names of the form __…__ are reserved.")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidArgs(f"In {where}: a field's name has at most {MAX_KEY_BYTES} bytes.")
    return key


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise InvalidArgs(f"The value is nested more than {MAX_DEPTH} levels deep.")


# -- sentinels


def _sentinel(wire: Mapping[str, Any], where: str, depth: int) -> Any:
    operation = wire["$op"]
    operand = _OPERANDS.get(operation, "") if isinstance(operation, str) else ""
    if operand == "":
        raise InvalidArgs(f"In {where}: unknown `$op`; known are {', '.join(sorted(_OPERANDS))}.")
    if set(wire) != ({"$op"} if operand is None else {"$op", operand}):
        takes = "nothing else" if operand is None else f"`{operand}` and nothing else"
        raise InvalidArgs(f"In {where}: `{operation}` takes {takes}.")
    return _BUILDERS[operation](wire.get(operand or ""), where, depth)


def _increment(by: Any, where: str, _: int) -> Increment:
    if isinstance(by, bool) or not isinstance(by, (int, float)) or not math.isfinite(by):
        raise InvalidArgs(f"In {where}: `increment` takes a finite number `by`.")
    return Increment(_integer(by, where) if isinstance(by, int) else by)


def _elements(values: Any, where: str, depth: int) -> list[Any]:
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidArgs(f"In {where}: `values` is an array with at least one element.")
    return _array(values, where, depth, in_array=False)


_OPERANDS: dict[str, str | None] = {
    "server_timestamp": None,
    "delete": None,
    "increment": "by",
    "array_union": "values",
    "array_remove": "values",
}

_BUILDERS: dict[str, Callable[[Any, str, int], Any]] = {
    "server_timestamp": lambda *_: SERVER_TIMESTAMP,
    "delete": lambda *_: DELETE_FIELD,
    "increment": _increment,
    "array_union": lambda values, where, depth: ArrayUnion(_elements(values, where, depth)),
    "array_remove": lambda values, where, depth: ArrayRemove(_elements(values, where, depth)),
}

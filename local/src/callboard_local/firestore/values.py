"""Values: Firestore's order over all types, access by field path, and what a document may hold."""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from . import names
from .errors import InvalidArgumentError
from .messages import Document, Value
from .names import FieldPath

MAX_DOCUMENT_BYTES = 1_048_576
_MAX_INDEXED_BYTES = 1_048_487
_MAX_NAME_BYTES = 1500
_MAX_DEPTH = 20

OrderKey = tuple[Any, ...]
Fields = MutableMapping[str, Value]

# The order of types; NaN sorts before the numbers and compares with none of them.
_NULL, _BOOLEAN, _NAN, _NUMBER, _TIMESTAMP, _STRING, _BYTES, _REFERENCE, _GEO_POINT, _ARRAY, _VECTOR, _MAP = range(12)


_PLAIN = {
    "boolean_value": _BOOLEAN,
    "integer_value": _NUMBER,
    "string_value": _STRING,  # code points sort as their UTF-8 bytes do
    "bytes_value": _BYTES,
}


def order_key(value: Value) -> OrderKey:
    """A key that sorts, compares and hashes as Firestore does: (type, content…); 1 and 1.0 are equal."""
    kind = value.WhichOneof("value_type")
    if (rank := _PLAIN.get(kind)) is not None:
        return (rank, getattr(value, kind))
    match kind:
        case "null_value":
            return (_NULL,)
        case "double_value":
            return (_NAN,) if math.isnan(value.double_value) else (_NUMBER, value.double_value)
        case "timestamp_value":
            return (_TIMESTAMP, value.timestamp_value.seconds, value.timestamp_value.nanos)
        case "reference_value":
            return reference_key(value.reference_value)
        case "geo_point_value":
            return (_GEO_POINT, value.geo_point_value.latitude, value.geo_point_value.longitude)
        case "array_value":
            return (_ARRAY, tuple(order_key(item) for item in value.array_value.values))
        case "map_value":
            return _map_key(value.map_value.fields)
    raise InvalidArgumentError("Cannot convert firestore.v1.Value with type unset.")


def reference_key(name: str) -> OrderKey:
    """The order key of a reference to the document of that name."""
    return (_REFERENCE, names.path_key(name))


def _map_key(fields: Mapping[str, Value]) -> OrderKey:
    if _is_vector(fields):
        items = fields["value"].array_value.values
        return (_VECTOR, len(items), tuple(order_key(item) for item in items))
    return (_MAP, tuple((key, order_key(fields[key])) for key in sorted(fields)))


def is_null(key: OrderKey) -> bool:
    return bool(key[0] == _NULL)


def is_nan(key: OrderKey) -> bool:
    return bool(key[0] == _NAN)


def array_items(key: OrderKey) -> tuple[OrderKey, ...]:
    """The keys of an array's items; none when it is no array."""
    return key[1] if key[0] == _ARRAY else ()


def is_number(value: Value) -> bool:
    return value.WhichOneof("value_type") in {"integer_value", "double_value"}


def number(value: Value) -> int | float:
    """The content of a number."""
    content: int | float = getattr(value, value.WhichOneof("value_type"))
    return content


def get(fields: Mapping[str, Value], path: FieldPath) -> Value | None:
    """The value at a path, or None."""
    value = fields.get(path[0])
    for segment in path[1:]:
        if value is None:
            return None
        value = value.map_value.fields.get(segment)  # of anything but a map, the fields are empty
    return value


def put(fields: Fields, path: FieldPath, value: Value) -> None:
    """Set the value at a path; what is in the way and not a map is replaced by one."""
    for segment in path[:-1]:
        holder = fields[segment]  # a protobuf map makes the entry on access
        if holder.WhichOneof("value_type") != "map_value":
            holder.map_value.SetInParent()
        fields = holder.map_value.fields
    fields[path[-1]].CopyFrom(value)


def remove(fields: Fields, path: FieldPath) -> None:
    """Delete the value at a path, if there is one."""
    for segment in path[:-1]:
        holder = fields.get(segment)
        if holder is None:
            return
        fields = holder.map_value.fields
    if path[-1] in fields:
        del fields[path[-1]]


def project(document: Document, paths: list[FieldPath] | None) -> Document:
    """The document with the fields under `paths` only; None means all of them."""
    if paths is None:
        return document
    reduced = Document(name=document.name, create_time=document.create_time, update_time=document.update_time)
    for path in paths:
        value = get(document.fields, path)
        if value is not None:
            put(reduced.fields, path, value)
    return reduced


def check_document(document: Document) -> None:
    """Refuse what Firestore would not store; an array in an array, for one."""
    for name, value in document.fields.items():
        _check_field_name(name)
        _check_value(name, value, depth=1)
    size = document_size(document)
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidArgumentError(
            f"Document '{document.name}' cannot be written because its size ({size:,} bytes) "
            f"exceeds the maximum allowed size of {MAX_DOCUMENT_BYTES:,} bytes."
        )


def document_size(document: Document) -> int:
    """The size in bytes as Google's documentation calculates it: name, fields, and 32."""
    path = names.split_name(document.name)[1]
    name_size = 16 + sum(len(segment.encode()) + 1 for segment in path.split("/"))
    return name_size + _fields_size(document.fields) + 32


def _fields_size(fields: Mapping[str, Value]) -> int:
    return sum(len(name.encode()) + 1 + _value_size(value) for name, value in fields.items())


def _value_size(value: Value) -> int:
    match value.WhichOneof("value_type"):
        case "null_value" | "boolean_value":
            return 1
        case "string_value":
            return len(value.string_value.encode()) + 1
        case "bytes_value":
            return len(value.bytes_value)
        case "reference_value":
            return len(value.reference_value.encode()) + 1
        case "geo_point_value":
            return 16
        case "array_value":
            return sum(_value_size(item) for item in value.array_value.values)
        case "map_value":
            return _fields_size(value.map_value.fields)
    return 8  # numbers and timestamps


def _check_value(field: str, value: Value, depth: int) -> None:
    kind = value.WhichOneof("value_type")
    if kind is None:
        raise InvalidArgumentError("Cannot convert firestore.v1.Value with type unset.")
    if kind in {"string_value", "bytes_value"}:
        content = getattr(value, kind)
        if len(content.encode() if isinstance(content, str) else content) > _MAX_INDEXED_BYTES:
            raise InvalidArgumentError(f'The value of property "{field}" is longer than {_MAX_INDEXED_BYTES} bytes.')
    if kind not in {"array_value", "map_value"}:
        return
    if depth > _MAX_DEPTH:
        raise InvalidArgumentError(f"Property {field} contains an invalid nested entity.")
    if kind == "array_value":
        for item in value.array_value.values:
            if item.WhichOneof("value_type") == "array_value":
                raise InvalidArgumentError("Cannot convert an array value in an array value.")
            _check_value(field, item, depth + 1)
    elif not _is_vector(value.map_value.fields):
        for name, item in value.map_value.fields.items():
            _check_field_name(name)
            _check_value(field, item, depth + 1)


def _check_field_name(name: str) -> None:
    if not name:
        raise InvalidArgumentError("field name cannot be empty")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise InvalidArgumentError(f"The property.name is longer than {_MAX_NAME_BYTES} bytes.")
    if len(name) >= 4 and name.startswith("__") and name.endswith("__"):
        raise InvalidArgumentError(f"field name {name} is reserved")


def _is_vector(fields: Mapping[str, Value]) -> bool:
    marker = fields.get("__type__")
    return marker is not None and marker.string_value == "__vector__"

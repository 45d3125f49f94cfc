"""What one write does to one document: preconditions, set and update, field transforms."""

import math
from collections.abc import Iterable

from google.cloud.firestore_v1.types import DocumentTransform as Transform

from . import names, values
from .errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from .messages import ArrayValue, Document, DocumentTransform, Precondition, Value, Write
from .names import FieldPath, parse_field_path
from .values import Fields

_MAX_INT = 2**63 - 1
_MIN_INT = -(2**63)
_REQUEST_TIME = Transform.FieldTransform.ServerValue.REQUEST_TIME


def written_path(database: str, write: Write) -> str:
    """The path of the document that a write is about."""
    match write.WhichOneof("operation"):
        case "update":
            name = write.update.name
        case "delete":
            name = write.delete
        case "transform":
            name = write.transform.document
        case _:
            raise InvalidArgumentError("empty write operation")
    path = names.document_path(database, name)
    names.check_writable(path)
    return path


def written_paths(database: str, writes: Iterable[Write]) -> list[str]:
    """The path each write of one commit is about; refuses writes that contradict an earlier one."""
    paths = []
    latest: dict[str, str] = {}
    for write in writes:
        path = written_path(database, write)
        paths.append(path)
        kind, before = _kind(write), latest.get(path)
        impossible = write.current_document.exists if before == "delete" else before and kind == "insert"
        if impossible:
            raise InvalidArgumentError(f"Cannot {before} then {kind} an entity in the same request.")
        latest[path] = kind
    return paths


def _kind(write: Write) -> str:
    if write.WhichOneof("operation") == "delete":
        return "delete"
    if not write.current_document.HasField("exists"):
        return "upsert"
    return "update" if write.current_document.exists else "insert"


def apply_write(write: Write, path: str, current: Document | None, time: int) -> tuple[Document | None, list[Value]]:
    """The document after the write, and the results of its transforms.

    `time` is that of the commit, in microseconds. A write that changes nothing returns `current` itself, which
    thereby keeps its update time. Nothing passed in is changed.
    """
    check_precondition(write.current_document, path, current)
    if write.WhichOneof("operation") == "delete":
        return None, []
    if write.WhichOneof("operation") == "transform":
        changed = _copy(current, write.transform.document)
        transforms = write.transform.field_transforms
    else:
        changed = _updated(write, current)
        transforms = write.update_transforms
    results = [_transform(changed.fields, transform, time) for transform in transforms]
    if current is not None and changed == current:
        return current, results
    values.check_document(changed)
    if current is None:
        changed.create_time.FromMicroseconds(time)
    changed.update_time.FromMicroseconds(time)
    return changed, results


def check_precondition(condition: Precondition, path: str, current: Document | None) -> None:
    """Raise unless the document meets the condition."""
    match condition.WhichOneof("condition_type"):
        case "exists":
            if condition.exists and current is None:
                raise NotFoundError(f"No document to update: {path}")
            if not condition.exists and current is not None:
                raise AlreadyExistsError(f"Document already exists: {path}")
        case "update_time":
            required = condition.update_time.ToMicroseconds()
            stored = 0 if current is None else current.update_time.ToMicroseconds()
            if required != stored:
                raise FailedPreconditionError(
                    f"the stored version ({stored}) does not match the required base version ({required})"
                )


def _copy(current: Document | None, name: str) -> Document:
    changed = Document(name=name)
    if current is not None:
        changed.CopyFrom(current)
    return changed


def _updated(write: Write, current: Document | None) -> Document:
    if not write.HasField("update_mask"):
        changed = Document(name=write.update.name)
        _copy_fields(write.update.fields, changed.fields)
        if current is not None:
            changed.create_time.CopyFrom(current.create_time)
            changed.update_time.CopyFrom(current.update_time)
        return changed
    changed = _copy(current, write.update.name)
    for path in map(parse_field_path, write.update_mask.field_paths):
        value = values.get(write.update.fields, path)
        if value is None:
            values.remove(changed.fields, path)
        else:
            values.put(changed.fields, path, value)
    return changed


def _copy_fields(source: Fields, target: Fields) -> None:
    for name, value in source.items():
        target[name].CopyFrom(value)


def _transform(fields: Fields, transform: DocumentTransform.FieldTransform, time: int) -> Value:
    path = parse_field_path(transform.field_path)
    match transform.WhichOneof("transform_type"):
        case "set_to_server_value":
            return _set_to_request_time(fields, path, transform.set_to_server_value, time)
        case "append_missing_elements":
            return _append(fields, path, transform.append_missing_elements)
        case "remove_all_from_array":
            return _remove_all(fields, path, transform.remove_all_from_array)
        case "increment" | "maximum" | "minimum" as kind:
            operand = getattr(transform, kind)
            if not values.is_number(operand):
                raise InvalidArgumentError("Input must be int64 or double.")
            current = values.get(fields, path)
            if current is not None and values.is_number(current):
                operand = _sum(current, operand) if kind == "increment" else _extreme(kind, current, operand)
            result = Value()
            result.CopyFrom(operand)
            values.put(fields, path, result)
            return result
    raise InvalidArgumentError("field transform has no type")


def _set_to_request_time(fields: Fields, path: FieldPath, server_value: int, time: int) -> Value:
    if server_value != _REQUEST_TIME:
        raise InvalidArgumentError("field transform has an unknown server value")
    result = Value()
    result.timestamp_value.FromMilliseconds(time // 1000)
    values.put(fields, path, result)
    return result


def _sum(current: Value, operand: Value) -> Value:
    total = values.number(current) + values.number(operand)
    if isinstance(total, float):
        return Value(double_value=total)
    return Value(integer_value=max(_MIN_INT, min(_MAX_INT, total)))


def _extreme(kind: str, current: Value, operand: Value) -> Value:
    stored, given = values.number(current), values.number(operand)
    if math.isnan(stored) or math.isnan(given):
        return Value(double_value=math.nan)
    replaces = given > stored if kind == "maximum" else given < stored
    return operand if replaces else current


def _append(fields: Fields, path: FieldPath, elements: ArrayValue) -> Value:
    items = _array(fields, path)
    present = {values.order_key(item) for item in items}
    for element in elements.values:
        key = values.order_key(element)
        if key not in present:
            present.add(key)
            items.append(element)
    return _set_array(fields, path, items)


def _remove_all(fields: Fields, path: FieldPath, elements: ArrayValue) -> Value:
    unwanted = {values.order_key(element) for element in elements.values}
    kept = [item for item in _array(fields, path) if values.order_key(item) not in unwanted]
    return _set_array(fields, path, kept)


def _array(fields: Fields, path: FieldPath) -> list[Value]:
    current = values.get(fields, path)
    return [] if current is None else list(current.array_value.values)


def _set_array(fields: Fields, path: FieldPath, items: Iterable[Value]) -> Value:
    values.put(fields, path, Value(array_value=ArrayValue(values=items)))
    return Value(null_value=0)

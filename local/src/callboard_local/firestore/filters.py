"""A query's `where`: checked once, compiled to one predicate over documents."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from google.cloud.firestore_v1.types import StructuredQuery as Query

from . import values
from .errors import InvalidArgumentError
from .messages import Document, StructuredQuery, Value
from .names import NAME_FIELD, FieldPath, parse_field_path
from .values import OrderKey

Predicate = Callable[[Document], bool]

_Op = Query.FieldFilter.Operator
_Unary = Query.UnaryFilter.Operator
_OR = Query.CompositeFilter.Operator.OR

_COMPARISONS: dict[int, Callable[[Any, Any], bool]] = {
    _Op.LESS_THAN: operator.lt,
    _Op.LESS_THAN_OR_EQUAL: operator.le,
    _Op.GREATER_THAN: operator.gt,
    _Op.GREATER_THAN_OR_EQUAL: operator.ge,
}
_NEGATIONS = {_Op.NOT_EQUAL, _Op.NOT_IN}
_UNARY_NEGATIONS = {_Unary.IS_NOT_NAN, _Unary.IS_NOT_NULL}
_MAX_DISJUNCTIONS = 30
_MAX_VALUES = {_Op.IN: 30, _Op.ARRAY_CONTAINS_ANY: 30, _Op.NOT_IN: 10}


class Filter:
    """`matches(document)`; `fields`, all that it names; `inequalities`, those that the query is ordered by."""

    def __init__(self, where: StructuredQuery.Filter) -> None:
        leaves = _leaves(where)
        _check_combination(where, leaves)
        self.matches = _compile(where)
        self.fields = {path for path, _ in leaves}
        self.inequalities = sorted({path for path, op in leaves if op in _INEQUALITIES})


def field_key(document: Document, path: FieldPath) -> OrderKey | None:
    """The order key of a document's field, or of its name; None when it has no such field."""
    if path == NAME_FIELD:
        return values.reference_key(document.name)
    value = values.get(document.fields, path)
    return None if value is None else values.order_key(value)


# Unary operators are told apart from the others, whose numbers overlap, by their negative sign.
_INEQUALITIES = {*_COMPARISONS, *_NEGATIONS, *(-op for op in _UNARY_NEGATIONS)}


def _leaves(where: StructuredQuery.Filter) -> list[tuple[FieldPath, int]]:
    match where.WhichOneof("filter_type"):
        case "composite_filter":
            return [leaf for part in where.composite_filter.filters for leaf in _leaves(part)]
        case "field_filter":
            return [(parse_field_path(where.field_filter.field.field_path), int(where.field_filter.op))]
        case "unary_filter":
            return [(parse_field_path(where.unary_filter.field.field_path), -int(where.unary_filter.op))]
    raise InvalidArgumentError("filter is empty")


def _check_combination(where: StructuredQuery.Filter, leaves: list[tuple[FieldPath, int]]) -> None:
    ops = [op for _, op in leaves]
    if sum(op in _NEGATIONS or -op in _UNARY_NEGATIONS for op in ops) > 1:
        raise InvalidArgumentError(
            "Only a single 'NOT_EQUAL', 'NOT_IN', 'IS_NOT_NAN', or 'IS_NOT_NULL' filter allowed per query."
        )
    if _Op.NOT_IN in ops and (_has_or(where) or {_Op.IN, _Op.ARRAY_CONTAINS_ANY}.intersection(ops)):
        raise InvalidArgumentError("'NOT_IN' cannot be used in the same query with 'IN', 'ARRAY_CONTAINS_ANY' or 'OR'.")
    compared = {path for path, op in leaves if op in _INEQUALITIES}
    if compared and NAME_FIELD not in compared and {(NAME_FIELD, _Op.EQUAL), (NAME_FIELD, _Op.IN)} & set(leaves):
        raise InvalidArgumentError(
            "Equality on key is not allowed if there are other inequality fields and key does not appear in "
            "inequalities."
        )
    if _array_filters(where) > 1:
        raise InvalidArgumentError("A maximum of 1 'ARRAY_CONTAINS' filter is allowed per disjunction.")
    disjunctions = _disjunctions(where)
    if disjunctions > _MAX_DISJUNCTIONS:
        raise InvalidArgumentError(
            f"Too many disjunctions after normalization. Result had {disjunctions} disjunctions "
            f"which is more than the maximum of {_MAX_DISJUNCTIONS}"
        )


def _is_or(where: StructuredQuery.Filter) -> bool:
    return bool(where.composite_filter.op == _OR)


def _has_or(where: StructuredQuery.Filter) -> bool:
    return _is_or(where) or any(map(_has_or, where.composite_filter.filters))


def _array_filters(where: StructuredQuery.Filter) -> int:
    """How many filters on arrays meet in one disjunction, at most."""
    if where.WhichOneof("filter_type") == "composite_filter":
        parts = [_array_filters(part) for part in where.composite_filter.filters]
        return max(parts) if _is_or(where) else sum(parts)
    return int(where.field_filter.op in {_Op.ARRAY_CONTAINS, _Op.ARRAY_CONTAINS_ANY})


def _disjunctions(where: StructuredQuery.Filter) -> int:
    """How many parts an OR would have, were the filter written as one OR of ANDs."""
    if where.WhichOneof("filter_type") == "composite_filter":
        parts = [_disjunctions(part) for part in where.composite_filter.filters]
        return sum(parts) if _is_or(where) else math.prod(parts)
    if where.field_filter.op in {_Op.IN, _Op.ARRAY_CONTAINS_ANY}:
        return len(where.field_filter.value.array_value.values)
    return 1


def _compile(where: StructuredQuery.Filter) -> Predicate:
    match where.WhichOneof("filter_type"):
        case "composite_filter":
            return _compile_composite(where.composite_filter)
        case "field_filter":
            return _compile_field(where.field_filter)
    return _compile_unary(where.unary_filter)


def _compile_composite(composite: StructuredQuery.CompositeFilter) -> Predicate:
    parts = [_compile(part) for part in composite.filters]
    if composite.op == _OR:
        return lambda document: any(part(document) for part in parts)
    return lambda document: all(part(document) for part in parts)


def _compile_unary(unary: StructuredQuery.UnaryFilter) -> Predicate:
    path = parse_field_path(unary.field.field_path)
    tests: dict[int, Callable[[OrderKey], bool]] = {
        _Unary.IS_NULL: values.is_null,
        _Unary.IS_NAN: values.is_nan,
        _Unary.IS_NOT_NULL: lambda key: not values.is_null(key),
        _Unary.IS_NOT_NAN: lambda key: not values.is_null(key) and not values.is_nan(key),
    }
    test = tests.get(unary.op)
    if test is None:
        raise InvalidArgumentError("Unknown UnaryFilter operator.")
    return _on_field(path, test)


def _compile_field(field: StructuredQuery.FieldFilter) -> Predicate:
    path = parse_field_path(field.field.field_path)
    operands = _operands(field)
    if path == NAME_FIELD and any(item.WhichOneof("value_type") != "reference_value" for item in operands):
        raise InvalidArgumentError("__key__ filter value must be a Key")
    keys = [values.order_key(item) for item in operands]
    return _on_field(path, _test(field.op, keys))


def _operands(field: StructuredQuery.FieldFilter) -> Sequence[Value]:
    limit = _MAX_VALUES.get(field.op)
    if limit is None:
        return [field.value]
    name = _Op(field.op).name
    if field.value.WhichOneof("value_type") != "array_value":
        raise InvalidArgumentError(f"'{name}' requires an ArrayValue.")
    operands: Sequence[Value] = field.value.array_value.values
    if not operands:
        raise InvalidArgumentError(f"'{name}' requires an non-empty ArrayValue.")
    if len(operands) > limit:
        raise InvalidArgumentError(f"'{name}' supports up to {limit} comparison values.")
    return operands


def _test(op: int, keys: list[OrderKey]) -> Callable[[OrderKey], bool]:
    first = keys[0]
    # Null and NaN equal nothing here; the unary filters are there for them.
    wanted = {key for key in keys if not values.is_null(key) and not values.is_nan(key)}
    if compare := _COMPARISONS.get(op):
        return lambda key: key[0] == first[0] and compare(key, first)
    match op:
        case _Op.EQUAL:
            return lambda key: key == first
        case _Op.IN:
            return lambda key: key in wanted
        case _Op.NOT_EQUAL:
            return lambda key: key != first and not values.is_null(key)
        case _Op.NOT_IN:
            if any(values.is_null(key) for key in keys):
                return lambda key: False
            return lambda key: key not in wanted and not values.is_null(key)
        case _Op.ARRAY_CONTAINS:
            return lambda key: first in values.array_items(key)
        case _Op.ARRAY_CONTAINS_ANY:
            return lambda key: any(item in wanted for item in values.array_items(key))
    raise InvalidArgumentError("Unknown FieldFilter operator.")


def _on_field(path: FieldPath, test: Callable[[OrderKey], bool]) -> Predicate:
    def predicate(document: Document) -> bool:
        key = field_key(document, path)
        return key is not None and test(key)

    return predicate

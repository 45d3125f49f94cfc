"""Count, sum and average over the result of a query."""

from collections.abc import Sequence

from . import values
from .errors import InvalidArgumentError
from .messages import Document, StructuredAggregationQuery, Value
from .names import FieldPath, parse_field_path
from .queries import CompiledQuery

_MAX_INT = 2**63 - 1
_MIN_INT = -(2**63)
_MAX_AGGREGATIONS = 5


class CompiledAggregation:
    """The aggregations of one request over one base query."""

    def __init__(self, parent: str, aggregation: StructuredAggregationQuery) -> None:
        parts = aggregation.aggregations
        if not parts:
            raise InvalidArgumentError("Aggregations can not be empty.")
        if len(parts) > _MAX_AGGREGATIONS:
            raise InvalidArgumentError(f"The maximum number of aggregations is {_MAX_AGGREGATIONS}.")
        self.query = CompiledQuery(parent, aggregation.structured_query)
        self._parts = dict(zip(_aliases(parts), parts, strict=True))

    def over(self, found: list[Document]) -> dict[str, Value]:
        """The results by alias, over what the base query found.

        Only documents that have every field aggregated on take part.
        """
        fields = [field for part in self._parts.values() if (field := _field(part)) is not None]
        documents = [
            document for document in found if all(values.get(document.fields, field) is not None for field in fields)
        ]
        return {alias: _aggregate(part, documents) for alias, part in self._parts.items()}


def _aliases(parts: Sequence[StructuredAggregationQuery.Aggregation]) -> list[str]:
    named = [part.alias for part in parts if part.alias]
    for alias in named:
        if named.count(alias) > 1:
            raise InvalidArgumentError(f"Aggregation aliases contain duplicate alias: {alias}.")
    unnamed = iter(range(1, len(parts) + 1))
    return [part.alias or f"field_{next(unnamed)}" for part in parts]


def _field(part: StructuredAggregationQuery.Aggregation) -> FieldPath | None:
    match part.WhichOneof("operator"):
        case "count":
            return None
        case "sum":
            path = part.sum.field.field_path
        case "avg":
            path = part.avg.field.field_path
        case _:
            raise InvalidArgumentError("Aggregation has no operator.")
    if path == "__name__":
        raise InvalidArgumentError("Aggregations are not supported for the property: __key__")
    return parse_field_path(path)


def _aggregate(part: StructuredAggregationQuery.Aggregation, documents: list[Document]) -> Value:
    field = _field(part)
    if field is None:
        count = len(documents)
        return Value(integer_value=min(count, part.count.up_to.value) if part.count.HasField("up_to") else count)
    found = [values.get(document.fields, field) for document in documents]
    numbers = [values.number(value) for value in found if value is not None and values.is_number(value)]
    if part.WhichOneof("operator") == "avg":
        return Value(double_value=sum(numbers) / len(numbers)) if numbers else Value(null_value=0)
    total = sum(numbers)
    if isinstance(total, int) and _MIN_INT <= total <= _MAX_INT:
        return Value(integer_value=total)
    return Value(double_value=float(total))

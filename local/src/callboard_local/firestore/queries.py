"""Structured queries, compiled once: run them over a view, or ask whether one document belongs."""

from collections.abc import Iterable

from google.cloud.firestore_v1.types import StructuredQuery as Query

from . import values
from .errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from .filters import Filter, field_key
from .messages import Cursor, Document, StructuredQuery
from .names import NAME_FIELD, FieldPath, parse_field_path
from .values import OrderKey
from .views import View, is_below

_DESCENDING = Query.Direction.DESCENDING


class CompiledQuery:
    """A query below `parent` (a document's path, or "" for the root).

    `windowed` says that a limit or an offset makes a document's membership depend on the other documents.
    """

    def __init__(self, parent: str, query: StructuredQuery) -> None:
        _check(query)
        self.parent = parent
        self.collection_id: str = query.from_[0].collection_id if query.from_ else ""
        self.all_descendants = not self.collection_id or bool(query.from_[0].all_descendants)
        self._filter = Filter(query.where) if query.HasField("where") else None
        self._orders = _orders(query, self._filter)
        self._start = _Bound(query.start_at, query, self._orders) if query.HasField("start_at") else None
        self._end = _Bound(query.end_at, query, self._orders) if query.HasField("end_at") else None
        self._offset = int(query.offset)
        self._limit = int(query.limit.value) if query.HasField("limit") else None
        self.windowed = self._limit is not None or self._offset > 0
        self._fields = _projection(query)

    @property
    def collection_path(self) -> str | None:
        """The one collection it reads; None when it reads a group of them."""
        if self.all_descendants:
            return None
        return f"{self.parent}/{self.collection_id}" if self.parent else self.collection_id

    def run(self, view: View) -> list[Document]:
        """The matching documents, in order, whole."""
        if self.collection_path is not None:
            documents: Iterable[Document] = view.collection(self.collection_path).values()
        else:
            documents = view.descendants(self.parent, self.collection_id)
        found = [(keys, document) for document in documents if (keys := self._order_keys(document)) is not None]
        for index, (_, descending) in reversed(list(enumerate(self._orders))):
            found.sort(key=lambda entry: entry[0][index], reverse=descending)
        end = None if self._limit is None else self._offset + self._limit
        return [document for _, document in found[self._offset : end]]

    def matches(self, path: str, document: Document) -> bool:
        """Whether the document at `path` belongs to the result, `windowed` left aside."""
        collection = path.rpartition("/")[0]
        if self.collection_path is not None:
            inside = collection == self.collection_path
        else:
            inside = is_below(collection, self.parent) and (self.collection_id in ("", collection.rpartition("/")[2]))
        return inside and self._order_keys(document) is not None

    def project(self, document: Document) -> Document:
        """The fields that the query selects."""
        return values.project(document, self._fields)

    def _order_keys(self, document: Document) -> list[OrderKey] | None:
        """What the document is ordered by; None when it is not in the result."""
        if self._filter is not None and not self._filter.matches(document):
            return None
        keys = []
        for field, _ in self._orders:
            key = field_key(document, field)
            if key is None:  # a document without a field that orders the result is not in it
                return None
            keys.append(key)
        if self._start is not None and not self._start.is_before(keys):
            return None
        return keys if self._end is None or not self._end.is_before(keys) else None


class _Bound:
    """A cursor: a position between the results."""

    def __init__(self, cursor: Cursor, query: StructuredQuery, orders: list[tuple[FieldPath, bool]]) -> None:
        if len(cursor.values) > len(query.order_by):
            raise InvalidArgumentError("Cursor has too many values.")
        for value, (field, _) in zip(cursor.values, orders, strict=False):
            if field == NAME_FIELD and value.WhichOneof("value_type") != "reference_value":
                raise InvalidArgumentError("Cursor __key__ value is not a document reference.")
        self._keys = [values.order_key(value) for value in cursor.values]
        self._descending = [descending for _, descending in orders]
        self._before = bool(cursor.before)

    def is_before(self, keys: list[OrderKey]) -> bool:
        """Whether this position comes before a document with these order keys."""
        for mine, theirs, descending in zip(self._keys, keys, self._descending, strict=False):
            if mine != theirs:
                return bool((theirs < mine) if descending else (mine < theirs))
        return self._before


def _check(query: StructuredQuery) -> None:
    if len(query.from_) > 1:
        raise InvalidArgumentError("StructuredQuery.from cannot have more than one collection selector.")
    if query.from_ and "/" in query.from_[0].collection_id:
        raise InvalidArgumentError(
            f'Collection id "{query.from_[0].collection_id}" is invalid because it contains "/".'
        )
    if query.offset < 0:
        raise InvalidArgumentError("offset is negative")
    if query.limit.value < 0:
        raise InvalidArgumentError("limit is negative")
    if query.HasField("find_nearest"):
        raise UnimplementedError("Vector search is not part of the embedded Firestore.")


def _orders(query: StructuredQuery, where: Filter | None) -> list[tuple[FieldPath, bool]]:
    """The complete order: the query's, then the inequality fields it leaves out, then the name."""
    orders = [(parse_field_path(order.field.field_path), order.direction == _DESCENDING) for order in query.order_by]
    by_name_alone = where is None or where.fields == {NAME_FIELD}
    if by_name_alone and set(orders) == {(NAME_FIELD, True)}:
        raise FailedPreconditionError("Firestore does not support descending key scans")
    named = [field for field, _ in orders]
    for field in named:
        if named.count(field) > 1:
            raise InvalidArgumentError(f"order by clause cannot contain duplicate fields {'.'.join(field)}")
    descending = orders[-1][1] if orders else False
    inequalities = where.inequalities if where is not None else []
    implied = [*(field for field in inequalities if field != NAME_FIELD), NAME_FIELD]
    orders += [(field, descending) for field in implied if field not in named]
    if orders[-1][0] != NAME_FIELD:
        raise InvalidArgumentError("order by clause cannot contain more fields after the key")
    return orders


def _projection(query: StructuredQuery) -> list[FieldPath] | None:
    if not query.HasField("select"):
        return None
    paths = [parse_field_path(field.field_path) for field in query.select.fields]
    return [path for path in paths if path != NAME_FIELD]

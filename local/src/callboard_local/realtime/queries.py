"""Queries: an order over the children of a node, bounds in it, and a limit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import BadRequestError
from .nodes import EMPTY, Node, Scalar, branch
from .paths import Path, key_order, parse_path
from .values import Parser, parse_json

Position = tuple[Any, ...]
"""Where a child stands in an order: comparable with every other position in the same order."""

_PARAMETERS = ("limitToFirst", "limitToLast", "startAt", "startAfter", "endAt", "endBefore", "equalTo")
_BEFORE_ALL: Position = ((-1,),)
_AFTER_ALL: Position = ((9,),)


@dataclass(frozen=True, slots=True)
class Bound:
    """An end of a range: a value of the order, and whether children that stand right there are within."""

    value: Scalar | None
    inclusive: bool


@dataclass(frozen=True, slots=True)
class Query:
    """What a request asks of the children of its node. A bound that exists may hold null."""

    order_by: str
    """`$key`, `$value`, `$priority` or the path of a grandchild."""
    start: Bound | None = None
    end: Bound | None = None
    first: int | None = None
    last: int | None = None

    def window(self, node: Node) -> Node:
        """The node with those of its children that the query selects."""
        if not node.children:
            filters = (self.start, self.end, self.first, self.last) != (None, None, None, None)
            return EMPTY if filters else node
        position = _order(self.order_by)
        low = self._edge(self.start, is_start=True) if self.start is not None else _BEFORE_ALL
        high = self._edge(self.end, is_start=False) if self.end is not None else _AFTER_ALL
        placed = sorted((position(key, child), key) for key, child in node.children.items())
        keys = [key for place, key in placed if low <= place <= high]
        if self.first is not None:
            keys = keys[: self.first]
        if self.last is not None:
            keys = keys[-self.last :]
        if len(keys) == len(node.children):
            return node
        return branch({key: node.children[key] for key in keys}, node.priority)

    def _edge(self, bound: Bound, *, is_start: bool) -> Position:
        """The position just before or after all children whose value is that of the bound."""
        before = is_start is bound.inclusive
        return (_rank(bound.value, self.order_by), *(_BEFORE_ALL if before else _AFTER_ALL))


def parse_query(parameters: Mapping[str, str]) -> Query | None:
    """The query in a URL's parameters; None without any of its parameters. Their values are JSON."""
    given = {name: parse_json(parameters[name].encode()) for name in _PARAMETERS if name in parameters}
    if "orderBy" not in parameters:
        if given:
            raise BadRequestError("orderBy must be defined when other query parameters are defined")
        return None
    order_by = _parse_order(parameters["orderBy"])
    for one, other in (("limitToFirst", "limitToLast"), ("startAt", "startAfter"), ("endAt", "endBefore")):
        if one in given and other in given:
            raise BadRequestError(f"Only one of {one} and {other} may be specified")
    ranges = {"startAt", "startAfter", "endAt", "endBefore"} & given.keys()
    if "equalTo" in given:
        if ranges:
            raise BadRequestError("equalTo cannot be specified in addition to startAfter, startAt, endAt, or endBefore")
        given["startAt"] = given["endAt"] = given["equalTo"]

    def bound(inclusive: str, exclusive: str) -> Bound | None:
        for name in (inclusive, exclusive):
            if name in given:
                return Bound(_bound_value(given[name], order_by), name == inclusive)
        return None

    return Query(
        order_by,
        bound("startAt", "startAfter"),
        bound("endAt", "endBefore"),
        _limit("limitToFirst", given),
        _limit("limitToLast", given),
    )


def _parse_order(text: str) -> str:
    try:
        order_by = parse_json(text.encode())
        if isinstance(order_by, str) and (order_by in ("$key", "$value", "$priority") or parse_path(order_by)):
            return order_by
    except BadRequestError:
        raise BadRequestError("orderBy must be a valid JSON encoded path") from None
    raise BadRequestError("orderBy must be a valid JSON encoded path")


def _bound_value(value: Any, order_by: str) -> Scalar | None:
    if isinstance(value, dict | list):
        raise BadRequestError("Constraint index field must be a JSON primitive")
    if order_by == "$key" and not isinstance(value, str):
        raise BadRequestError("Provided key index type is invalid, must be string")
    if order_by == "$priority" and isinstance(value, bool):
        raise BadRequestError("Provided priority index type is invalid, must be a number, a string or null")
    return Parser(0).node(value).value


def _limit(name: str, given: Mapping[str, Any]) -> int | None:
    limit = given.get(name)
    if name not in given:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
        raise BadRequestError(f"{name} must be positive")
    return limit


def _order(order_by: str) -> Callable[[str, Node], Position]:
    """Makes the position of a child from its key and node: its rank, then its key among those of the same rank."""
    if order_by == "$key":
        return lambda key, _: (key_order(key), key_order(key))
    if order_by == "$value":
        return lambda key, child: (_node_rank(child), key_order(key))
    if order_by == "$priority":
        return lambda key, child: (_rank(child.priority), key_order(key))
    path: Path = parse_path(order_by)
    return lambda key, child: (_node_rank(child.at(path)), key_order(key))


def _node_rank(node: Node) -> Position:
    return (5, 0) if node.children else _rank(node.value)


def _rank(value: Scalar | None, order_by: str = "") -> Position:
    """Sorts values of all types: null, false, true, numbers, strings; objects come last, and are all alike."""
    if order_by == "$key":
        return key_order(str(value))
    if value is None:
        return 0, 0
    if isinstance(value, bool):
        return 1 + value, 0
    return (3, value) if isinstance(value, int | float) else (4, value)

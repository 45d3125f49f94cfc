"""From JSON text to nodes: what may be stored, and what the server fills in."""

import json
import math
from typing import Any, NoReturn

from .errors import INVALID_JSON, NO_DATA, BadRequestError
from .nodes import EMPTY, Node, Priority, Scalar, branch, leaf
from .paths import PRIORITY, check_depth, check_key

MAX_STRING_BYTES = 10 * 1024 * 1024

_SERVER_VALUE = ".sv"
_VALUE = ".value"


def parse_json(body: bytes) -> Any:
    """The JSON value of a request's body or parameter; refuses NaN, infinity, and nesting that nobody can mean."""
    if not body.strip():
        raise BadRequestError(NO_DATA)
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadRequestError(INVALID_JSON) from None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)


class Parser:
    """Turns the JSON values of one request into nodes; all its server timestamps are the same moment.

    `now_ms` is that moment, in milliseconds since 1970.
    """

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def node(self, value: Any, before: Node = EMPTY, depth: int = 0) -> Node:
        """The node for a value written where `before` is now, `depth` levels below the root."""
        check_depth(depth)
        if isinstance(value, dict):
            return self._object(value, before, depth)
        if isinstance(value, list):
            items = ((str(index), item) for index, item in enumerate(value))
            return branch(self._children(items, before, depth))
        return leaf(_scalar(value))

    def _object(self, value: dict[str, Any], before: Node, depth: int) -> Node:
        if _SERVER_VALUE in value:
            if len(value) > 1 + (PRIORITY in value):
                raise BadRequestError("Invalid data; .sv has no siblings.")
            return leaf(self._server_value(value[_SERVER_VALUE], before), self._priority(value))
        if _VALUE in value:
            if len(value) > 1 + (PRIORITY in value) or isinstance(value[_VALUE], list):
                raise BadRequestError("Invalid data; .value holds a primitive, and has no siblings but .priority.")
            inner = self.node(value[_VALUE], before, depth)
            if inner.children:
                raise BadRequestError("Invalid data; .value holds a primitive, and has no siblings but .priority.")
            return leaf(inner.value, self._priority(value))
        items = ((key, item) for key, item in value.items() if key != PRIORITY)
        return branch(self._children(items, before, depth), self._priority(value))

    def _children(self, items: Any, before: Node, depth: int) -> dict[str, Node]:
        children = {}
        for key, item in items:
            check_key(key)
            child = self.node(item, before.children.get(key, EMPTY), depth + 1)
            if child:
                children[key] = child
        return children

    def _priority(self, value: dict[str, Any]) -> Priority:
        priority = self.node(value.get(PRIORITY))
        return checked_priority(priority).value

    def _server_value(self, operation: Any, before: Node) -> Scalar:
        if operation == "timestamp":
            return self._now_ms
        if isinstance(operation, dict) and list(operation) == ["increment"]:
            delta = _scalar(operation["increment"])
            if not isinstance(delta, str | bool | None):
                held = before.value
                return _number(held + delta) if isinstance(held, int | float) and not isinstance(held, bool) else delta
        raise BadRequestError("Invalid data; .sv is neither timestamp nor an increment by a number.")


def checked_priority(node: Node) -> Node:
    """The node, when it can be a priority: a number, a text or nothing."""
    if node.children or isinstance(node.value, bool):
        raise BadRequestError("Invalid data; a priority is a number, a string or null.")
    return node


def _scalar(value: Any) -> Scalar | None:
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:  # half of a surrogate pair
            raise BadRequestError(INVALID_JSON) from None
        if size > MAX_STRING_BYTES:
            raise BadRequestError(f"Invalid data; a string is larger than {MAX_STRING_BYTES} bytes.")
        return value
    if isinstance(value, bool) or value is None:
        return value
    return _number(value)


def _number(value: int | float) -> int | float:
    """A number as the database keeps it: whole ones are integers up to 64 bits, all others are doubles."""
    try:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = float(value)
    except OverflowError:
        raise BadRequestError(INVALID_JSON) from None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRequestError(INVALID_JSON)
        if value.is_integer() and abs(value) <= 2**53:
            return int(value)
    return value

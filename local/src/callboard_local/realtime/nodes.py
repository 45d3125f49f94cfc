"""The tree's nodes: immutable, so that a snapshot costs nothing and an untouched subtree stays the same object."""

import base64
import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from .paths import PRIORITY, Path, array_index, key_order

Scalar = str | int | float | bool
Priority = str | int | float | None

_NO_CHILDREN: Mapping[str, "Node"] = {}


class Node:
    """A value at one place: a scalar, or named children, or nothing; and perhaps a priority.

    Make them with `leaf` and `branch`. Nothing is `EMPTY`: a branch never holds it, and one without children is it.
    """

    __slots__ = ("_digest", "children", "priority", "value")

    def __init__(self, value: Scalar | None, children: Mapping[str, "Node"], priority: Priority) -> None:
        self.value = value
        self.children = children
        self.priority = priority
        self._digest: str | None = None

    def __bool__(self) -> bool:
        return self.value is not None or bool(self.children)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Node):
            return NotImplemented
        return (
            _same(self.value, other.value)
            and _same(self.priority, other.priority)
            and len(self.children) == len(other.children)
            and self.children == other.children
        )

    __hash__ = None  # type: ignore[assignment]

    def at(self, path: Path) -> "Node":
        """The node at a relative path; `EMPTY` where there is none."""
        node = self
        for key in path:
            if key == PRIORITY:
                return leaf(node.priority)
            node = node.children.get(key, EMPTY)
        return node

    def replaced(self, path: Path, new: "Node") -> "Node":
        """This node with another one at a relative path. Whatever stays equal stays the same object."""
        if not path:
            return self._became(new)
        key, rest = path[0], path[1:]
        if key == PRIORITY:
            return self._with_priority(new)
        child = self.children.get(key, EMPTY)
        changed = child.replaced(rest, new)
        if changed is child:
            return self
        children = dict(self.children)
        if changed:
            children[key] = changed
        else:
            del children[key]
        return branch(children, self.priority)

    def _became(self, new: "Node") -> "Node":
        if not self.children or not new.children:
            return self if self == new else new
        children = {
            key: self.children[key]._became(child) if key in self.children else child
            for key, child in new.children.items()
        }
        same = len(children) == len(self.children) and _same(self.priority, new.priority)
        if same and all(self.children.get(key) is child for key, child in children.items()):
            return self
        return branch(children, new.priority)

    def _with_priority(self, new: "Node") -> "Node":
        if not self or _same(self.priority, new.value):
            return self
        return Node(self.value, self.children, None if isinstance(new.value, bool) else new.value)

    def sorted_children(self) -> list[tuple[str, "Node"]]:
        return sorted(self.children.items(), key=lambda item: key_order(item[0]))

    def plain(self, *, export: bool = False) -> Any:
        """As JSON values. Children that fill more than half of the places of an array become one.

        `export` keeps the priorities (`.priority`, and `.value` beside it), and makes no arrays.
        """
        if export and self and self.priority is not None:
            rest = {".value": self.value} if self.value is not None else self._object(export=True)
            return {PRIORITY: self.priority, **rest}
        if self.value is not None:
            return self.value
        if not self.children:
            return None
        if not export and (length := self._array_length()):
            return [self.children.get(str(index), EMPTY).plain() for index in range(length)]
        return self._object(export=export)

    def _object(self, *, export: bool) -> dict[str, Any]:
        return {key: child.plain(export=export) for key, child in self.sorted_children()}

    def _array_length(self) -> int:
        last = -1
        for key in self.children:
            index = array_index(key)
            if index is None:
                return 0
            last = max(last, index)
        return last + 1 if last < 2 * len(self.children) else 0

    def leaves(self, path: Path = ()) -> Iterator[tuple[Path, Scalar]]:
        """Every scalar below, with its path, as `plain(export=True)` shows them."""
        if self.priority is not None:
            yield (*path, PRIORITY), self.priority
        if self.value is not None:
            yield (path if self.priority is None else (*path, ".value")), self.value
        for key, child in self.children.items():
            yield from child.leaves((*path, key))

    @property
    def digest(self) -> str:
        """A hash of all that is here: equal for equal data, whatever its history; empty for nothing."""
        if self._digest is None:
            self._digest = self._hash()
        return self._digest

    def _hash(self) -> str:
        if not self:
            return ""
        text = f"priority:{_typed(self.priority)}:" if self.priority is not None else ""
        if self.value is not None:
            text += _typed(self.value)
        else:
            text += "".join(f":{len(key)}:{key}:{child.digest}" for key, child in self.sorted_children())
        return base64.b64encode(hashlib.sha1(text.encode(), usedforsecurity=False).digest()).decode()


def leaf(value: Scalar | None, priority: Priority = None) -> Node:
    """A scalar's node; `EMPTY` for None."""
    return Node(value, _NO_CHILDREN, priority) if value is not None else EMPTY


def branch(children: Mapping[str, Node], priority: Priority = None) -> Node:
    """A node with children, none of them empty; `EMPTY` without any."""
    return Node(None, children, priority) if children else EMPTY


def _same(one: Scalar | None, other: Scalar | None) -> bool:
    # In Python True equals 1; in a database it does not.
    return one == other and isinstance(one, bool) is isinstance(other, bool)


def _typed(value: Scalar) -> str:
    if isinstance(value, bool):
        return f"boolean:{str(value).lower()}"
    if isinstance(value, str):
        return f"string:{value}"
    # An integer beyond 2**53 would share a double with its neighbours.
    return f"number:{struct.pack('>d', value).hex()}:{value if isinstance(value, int) and abs(value) > 2**53 else ''}"


EMPTY = Node(None, _NO_CHILDREN, None)

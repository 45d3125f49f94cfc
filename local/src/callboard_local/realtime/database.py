"""One database: its tree, and the one place where it changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from .changes import Change
from .errors import INVALID_PATCH, INVALID_PATH, BadRequestError
from .journal import Journal
from .listeners import Listeners
from .nodes import EMPTY, Node
from .paths import PRIORITY, Path, parse_path
from .values import Parser, checked_priority

Write = tuple[Path, Node]


class Database:
    """The database of one namespace. No method awaits: each is one step for all others."""

    def __init__(self, name: str, journal: Journal | None = None, root: Node = EMPTY) -> None:
        self.name = name
        self.root = root
        """The tree as it is now."""
        self.listeners = Listeners()
        self._journal = journal

    def put(self, path: Path, value: Any, parser: Parser) -> Node:
        """Replace what is at a path by a JSON value; the node that is there now."""
        node = self._parsed(path, value, parser)
        self._apply(path, [(path, node)], is_patch=False)
        return node

    def patch(self, path: Path, values: Any, parser: Parser) -> dict[str, Node]:
        """Replace what is at several paths below this one, all at once; the nodes by the paths that were given."""
        if not isinstance(values, dict):
            raise BadRequestError(INVALID_PATCH)
        if path and path[-1] == PRIORITY:
            raise BadRequestError(INVALID_PATH)
        nodes = {}
        writes = []
        for key, value in values.items():
            below = parse_path(key)
            if not below:
                raise BadRequestError(INVALID_PATCH)
            node = self._parsed(path + below, value, parser)
            writes.append((path + below, node))
            nodes["/".join(below)] = node
        _refuse_overlaps(writes)
        self._apply(path, writes, is_patch=True)
        return nodes

    def _parsed(self, path: Path, value: Any, parser: Parser) -> Node:
        before = self.root.at(path)
        if path and path[-1] == PRIORITY:
            return checked_priority(parser.node(value, before))
        return parser.node(value, before, len(path))

    def _apply(self, base: Path, writes: Sequence[Write], *, is_patch: bool) -> None:
        before = after = self.root
        for path, node in writes:
            after = after.replaced(path, node)
        if after is before:
            return
        if self._journal is not None:
            self._journal.write(self.name, _touched(before, after, writes))
        self.root = after
        self.listeners.publish(Change(before, after, base, writes, is_patch))


def _refuse_overlaps(writes: Sequence[Write]) -> None:
    paths = {path for path, _ in writes}
    if len(paths) < len(writes) or any(path[:length] in paths for path in paths for length in range(len(path))):
        raise BadRequestError("Invalid data; a path of an update is, or is above, another of its paths.")


def _touched(before: Node, after: Node, writes: Sequence[Write]) -> Mapping[Path, Node]:
    """The subtrees that a store of leaves has to replace, by their paths.

    Where a write makes or takes away what is above it, that goes too: a scalar that got children, a parent that lost
    its last child.
    """
    touched = {}
    for path, _ in writes:
        place = path[:-1] if path[-1:] == (PRIORITY,) else path
        for length in range(len(place)):
            if not before.at(place[:length]).children or not after.at(place[:length]).children:
                place = place[:length]
                break
        touched[place] = after.at(place)
    return touched

"""What a write means to those who listen: the events that turn what they knew into what is there now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .nodes import EMPTY, Node
from .paths import PRIORITY, Path

Event = tuple[str, str, Any]
"""`put` or `patch`, a path relative to the listened node, plain data."""


@dataclass(frozen=True, slots=True)
class Change:
    """One atomic write: `before` and `after` are the roots, `writes` the absolute paths that were replaced.

    `base` is the path of the request; with `is_patch` the writes lie below it and belong together.
    """

    before: Node
    after: Node
    base: Path
    writes: Sequence[tuple[Path, Node]]
    is_patch: bool

    def event(self, path: Path, *, export: bool) -> Event | None:
        """What somebody who listens to all of the node at `path` has to hear; None for nothing."""
        node = self.after.at(path)
        if node is self.before.at(path):
            return None
        if self._replaced(path):
            return "put", "/", node.plain(export=export)
        below = [
            (written, new.plain(export=export))
            for written, new in self.writes
            if written[: len(path)] == path and (export or written[-1] != PRIORITY)
        ]
        if not below:
            return None
        if not self.is_patch:
            ((written, data),) = below
            return "put", _relative(written, path), data
        base = self.base if len(self.base) > len(path) else path
        return "patch", _relative(base, path), {"/".join(written[len(base) :]): data for written, data in below}

    def window_event(self, path: Path, known: Node, now: Node, *, export: bool) -> Event | None:
        """What somebody has to hear whose query at `path` selected `known` and selects `now`; None for nothing."""
        if known == now:
            return None
        if self._replaced(path) or not (known.children and now.children):
            return "put", "/", now.plain(export=export)
        children = {
            key: now.children.get(key, EMPTY)
            for key in (*known.children, *(key for key in now.children if key not in known.children))
            if now.children.get(key) is not known.children.get(key)
        }
        if len(children) > 1:
            return "patch", "/", {key: child.plain(export=export) for key, child in children.items()}
        if not children:  # the node's own priority
            return ("put", "/", now.plain(export=True)) if export else None
        ((key, child),) = children.items()
        written = self.writes[0][0]
        if key in known.children and key in now.children and not self.is_patch and (export or written[-1] != PRIORITY):
            return "put", _relative(written, path), self.after.at(written).plain(export=export)
        return "put", f"/{key}", child.plain(export=export)

    def _replaced(self, path: Path) -> bool:
        """Whether a write was made right there, or above."""
        return any(path[: len(written)] == written for written, _ in self.writes)


def _relative(path: Path, to: Path) -> str:
    return "/" + "/".join(path[len(to) :])

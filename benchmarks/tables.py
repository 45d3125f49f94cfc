"""Tables of figures, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def across(rows: Sequence[Row]) -> str:
    """A line a row; a figure that it lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _table(names, [[row.get(name, "") for name in names] for row in rows])


def down(rows: Sequence[Row], title: str) -> str:
    """A column a row, headed by its `title`; a figure that it lacks is left empty."""
    names = dict.fromkeys(name for row in rows for name in row if name != title)
    return _table(["", *(row[title] for row in rows)], [[name, *(row.get(name, "") for row in rows)] for name in names])


def _table(head: Iterable[Any], lines: Iterable[Iterable[Any]]) -> str:
    cells = [list(map(_cell, head)), *(list(map(_cell, line)) for line in lines)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _cell(value: Any) -> str:
    if value is None:
        return "no answer"
    if isinstance(value, list):
        return " / ".join(map(_cell, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""What a fault test measured: one line that a program can read, in pytest's summary.

@pytest.mark.fault(row=13)                      # of the fault matrix; control=True: with the protection off
async def test_a_replica_dies(fault: Fault) -> None:
    …
    fault.figure(executions_max=1, unknown=212)

FAULT {"row": [13], "control": false, "test": "test_a_replica_dies", "outcome": "passed", "executions_max": 1, …}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

_PROPERTY = "fault"
MARKER = "fault(row, control=False): a row of the fault matrix, or several; control: True, 'within' or False"


class Fault:
    """The figures of one test; numbers, texts and truths."""

    def __init__(self) -> None:
        self.figures: dict[str, float | int | str | bool] = {}

    def figure(self, **figures: float | int | str | bool) -> None:
        """Add figures by name; seconds end in `_s`. A float is rounded to three digits after the point."""
        self.figures.update(
            {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
        )


def keep(item: pytest.Item) -> None:
    """Have the report of a test that is marked carry its figures, to whichever process prints them."""
    if (marker := item.get_closest_marker("fault")) is None:
        return
    row, control = marker.kwargs["row"], marker.kwargs.get("control", False)
    fault = getattr(item, "funcargs", {}).get("fault", Fault())
    told = {"row": sorted(row) if isinstance(row, tuple) else [row], "control": control, "test": item.name}
    item.user_properties.append((_PROPERTY, json.dumps({**told, **fault.figures})))


def lines(reports: dict[str, list[Any]]) -> Iterator[str]:
    """The lines of all reports of a session, by row."""
    found: list[dict[str, Any]] = []
    for outcome in ("passed", "failed"):
        for report in reports.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == _PROPERTY and report.when == "call":
                    told = json.loads(value)
                    about = {key: told.pop(key) for key in ("row", "control", "test")}
                    found.append({**about, "outcome": outcome, **told})
    for told in sorted(found, key=lambda one: (one["row"], str(one["control"]), one["test"])):
        yield f"FAULT {json.dumps(told)}"

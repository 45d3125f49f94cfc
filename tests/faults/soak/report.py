"""What a run measured, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from faults.soak.calls import figures_of_calls
from faults.soak.history import Began, Entry
from faults.soak.screens import figures_of_screens
from faults.soak.slopes import FLAT, Slope, most_redis_connections, slopes_of
from faults.soak.verdict import Violation

_SHOWN = 20
_MIB = 1024 * 1024


def figures_of(records: Sequence[Entry]) -> dict[str, float | int]:
    """The figures of a run, by name."""
    faults = sum(isinstance(record, Began) for record in records)
    figures = {"faults": faults, **figures_of_calls(records), **figures_of_screens(records)}
    return {**figures, "redis_connections_max": most_redis_connections(records)}


def report_of(records: Sequence[Entry], violations: Sequence[Violation]) -> str:
    parts = [_faults(records), _figures(records), _slopes(records), _violations(violations)]
    return "\n\n".join(part for part in parts if part)


def _faults(records: Sequence[Entry]) -> str:
    counted = Counter(record.fault for record in records if isinstance(record, Began))
    return "\n".join(["| fault | times |", "|---|---|", *(f"| {name} | {n} |" for name, n in sorted(counted.items()))])


def _figures(records: Sequence[Entry]) -> str:
    lines = ["| figure | |", "|---|---|"]
    for name, value in figures_of(records).items():
        lines.append(f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |")
    return "\n".join(lines)


def _slopes(records: Sequence[Entry]) -> str:
    rows = [
        f"| {slope.replica} | {slope.seconds:.0f} s | {slope.measure} "
        f"| {_scaled(slope, slope.grown)} ± {_scaled(slope, slope.error)} "
        f"| ≤ {_scaled(slope, FLAT[slope.measure].within(slope.seconds))} |"
        for slope in slopes_of(records)
    ]
    if not rows:
        return "no process lived long enough for a slope"
    return "\n".join(
        ["| replica | measured for | measure | grew by | counts as flat |", "|---|---|---|---|---|", *rows]
    )


def _scaled(slope: Slope, value: float) -> str:
    return f"{value / _MIB:.2f} MiB" if slope.measure == "rss" else f"{value:.1f}"


def _violations(violations: Sequence[Violation]) -> str:
    if not violations:
        return "every promise was kept"
    counted = Counter(violation.rule for violation in violations)
    lines = [f"{len(violations)} VIOLATIONS: " + ", ".join(f"{n} × {rule}" for rule, n in counted.most_common())]
    lines += [f"- {violation}" for violation in violations[:_SHOWN]]
    return "\n".join(lines)

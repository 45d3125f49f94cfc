"""Whether a process grows: least squares over its samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from faults.soak.history import Entry, Sample
from faults.soak.verdict import Violation

# A process's first minutes fill caches, pools and allocators' arenas.
WARM_UP_S = 120.0
# Below this much time a slope says nothing.
MEASURED_S = 240.0


class Flat(NamedTuple):
    """What counts as flat. A pool that once had more to do keeps its connections: hence a sum beside the rate."""

    once: float
    per_hour: float

    def within(self, seconds: float) -> float:
        return self.once + self.per_hour * seconds / 3600


# A leak of a task, a descriptor or 20 KiB with each socket or fault, of which half an hour has some hundred, is above.
FLAT = {
    "rss": Flat(6 * 1024 * 1024, 12 * 1024 * 1024),
    "threads": Flat(16, 2),  # a namespace's pool, which fills when many sync calls come at once
    "fds": Flat(8, 12),
    "tasks": Flat(6, 12),
}
# Two pools of 50, for commands and for publishing, 8 more to each for what is urgent, and the bus's own, of which two
# may overlap.
MOST_REDIS_CONNECTIONS = 120


class Slope(NamedTuple):
    """By how much one measure of one life of a process grew while it was measured, and the standard error of that."""

    replica: str
    pid: int
    measure: str
    grown: float
    error: float
    seconds: float

    @property
    def is_flat(self) -> bool:
        """Not surely above what counts as flat: two standard errors are granted."""
        return self.grown - 2 * self.error <= FLAT[self.measure].within(self.seconds)


def fit(times: Sequence[float], values: Sequence[float], *loads: Sequence[float]) -> tuple[float, float]:
    """The slope of `values` over `times` by least squares, and its standard error.

    `loads` are what else the values depend on, linearly, such as the number of sockets that a replica has just then.
    """
    basis: list[list[float]] = []
    for column in ([1.0] * len(times), *loads):
        rest = _rest(column, basis)
        if _dot(rest, rest) > 1e-9 * _dot(column, column):  # not a sum of the others
            basis.append(rest)
    free = len(times) - len(basis) - 1
    if free < 1:
        raise ValueError("too few points for a slope")
    time, value = _rest(times, basis), _rest(values, basis)
    spread = _dot(time, time)
    slope = _dot(time, value) / spread
    off = [v - slope * t for t, v in zip(time, value, strict=True)]
    return slope, (_dot(off, off) / free / spread) ** 0.5


def _rest(column: Sequence[float], basis: Sequence[Sequence[float]]) -> list[float]:
    """What the columns of an orthogonal basis do not explain."""
    rest = list(column)
    for one in basis:
        part = _dot(rest, one) / _dot(one, one)
        rest = [r - part * o for r, o in zip(rest, one, strict=True)]
    return rest


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def slopes_of(records: Sequence[Entry]) -> Iterator[Slope]:
    """Of every life that was long enough."""
    for (replica, pid), samples in _lives(records).items():
        warm = [sample for sample in samples if sample.t >= samples[0].t + WARM_UP_S]
        if len(warm) < 10 or (seconds := warm[-1].t - warm[0].t) < MEASURED_S:
            continue
        times = [sample.t for sample in warm]
        loads = [[float(sample.sockets) for sample in warm], [float(sample.listeners) for sample in warm]]
        for measure in FLAT:
            slope, error = fit(times, [float(getattr(sample, measure)) for sample in warm], *loads)
            yield Slope(replica, pid, measure, slope * seconds, error * seconds, seconds)


def most_redis_connections(records: Sequence[Entry]) -> int:
    return max((record.redis for record in records if isinstance(record, Sample)), default=0)


def check_slopes(records: Sequence[Entry]) -> Iterator[Violation]:
    for slope in slopes_of(records):
        if not slope.is_flat:
            what = f"{slope.measure} by {slope.grown:.4g} ± {slope.error:.2g} in {slope.seconds:.0f} s"
            yield Violation("a process that grows", f"{slope.replica}, process {slope.pid}", what)
    for (replica, pid), samples in _lives(records).items():
        if (most := most_redis_connections(samples)) > MOST_REDIS_CONNECTIONS:
            yield Violation("too many connections to Redis", f"{replica}, process {pid}", str(most))


def _lives(records: Sequence[Entry]) -> dict[tuple[str, int], list[Sample]]:
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for record in records:
        if isinstance(record, Sample):
            lives[record.replica, record.pid].append(record)
    return lives

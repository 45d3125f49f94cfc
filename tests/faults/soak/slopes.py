"""Whether a process grows: least squares over its samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from faults.soak.history import Entry, Sample
from faults.soak.verdict import Violation

# A process's first minutes fill caches and allocators' arenas.
WARM_UP_S = 120.0
# Below this much time a slope says nothing: one collection of garbage would be it.
MEASURED_S = 240.0
# Growth in an hour that counts as flat: a leak of 1 KiB, a task or a descriptor with each call or socket is far above.
FLAT_PER_HOUR = {"rss": 48 * 1024 * 1024, "threads": 6.0, "fds": 30.0, "tasks": 60.0}


class Slope(NamedTuple):
    """Of one measure of one life of a process, in units (RSS: bytes) an hour."""

    replica: str
    pid: int
    measure: str
    per_hour: float
    error_per_hour: float
    """Standard error."""
    samples: int
    seconds: float

    @property
    def is_flat(self) -> bool:
        """Not surely above what counts as flat: two standard errors are granted."""
        return self.per_hour - 2 * self.error_per_hour <= FLAT_PER_HOUR[self.measure]


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope of a straight line through points (x, y) by least squares, and its standard error."""
    n = len(points)
    if n < 3:
        raise ValueError("a slope needs three points")
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, (residual / (n - 2) / spread) ** 0.5


def slopes_of(records: Sequence[Entry]) -> Iterator[Slope]:
    """Of every life that was long enough."""
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for record in records:
        if isinstance(record, Sample):
            lives[record.replica, record.pid].append(record)
    for (replica, pid), samples in lives.items():
        warm = [sample for sample in samples if sample.t >= samples[0].t + WARM_UP_S]
        if len(warm) < 10 or warm[-1].t - warm[0].t < MEASURED_S:
            continue
        for measure in FLAT_PER_HOUR:
            slope, error = fit([(sample.t / 3600, float(getattr(sample, measure))) for sample in warm])
            yield Slope(replica, pid, measure, slope, error, len(warm), warm[-1].t - warm[0].t)


def check_slopes(records: Sequence[Entry]) -> Iterator[Violation]:
    for slope in slopes_of(records):
        if not slope.is_flat:
            what = f"{slope.measure} grow by {slope.per_hour:.4g} ± {slope.error_per_hour:.2g} an hour"
            yield Violation("a process that grows", f"{slope.replica}, process {slope.pid}", what)

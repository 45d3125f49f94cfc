from __future__ import annotations

import random

import pytest
from faults.soak.history import Sample
from faults.soak.slopes import FLAT_PER_HOUR, MEASURED_S, WARM_UP_S, fit, slopes_of


def samples(
    seconds: int,
    *,
    pid: int = 1,
    begin: float = 0.0,
    fds: float = 40.0,
    fds_per_s: float = 0.0,
    rss_per_s: float = 0.0,
) -> list[Sample]:
    """A process's samples, five seconds apart, with the noise that real ones have."""
    noise = random.Random(pid)
    return [
        Sample(
            t=begin + t, replica="r1", pid=pid, threads=20, tasks=100 + noise.randrange(20),
            rss=int(80e6 + rss_per_s * t + noise.randrange(500_000)), fds=int(fds + fds_per_s * t) + noise.randrange(6),
        )
        for t in range(0, seconds, 5)
    ]  # fmt: skip


def test_a_line_is_fitted_as_it_lies() -> None:
    assert fit([(0, 1), (1, 3), (2, 5)]) == (2, 0)
    slope, error = fit([(0, 0), (1, 1), (2, 1), (3, 2)])
    assert (slope, error) == pytest.approx((0.6, 0.1414), abs=1e-4)
    with pytest.raises(ValueError, match="three points"):
        fit([(0, 0), (1, 1)])


def test_each_life_of_a_replica_has_its_own_slopes() -> None:
    long = int(WARM_UP_S + MEASURED_S + 60)
    lives = [
        *samples(long, pid=1),
        *samples(long, pid=2, begin=long, fds_per_s=0.1),
        *samples(30, pid=3, begin=2 * long),
    ]
    found = {(slope.pid, slope.measure): slope for slope in slopes_of(lives)}
    assert set(found) == {(pid, measure) for pid in (1, 2) for measure in FLAT_PER_HOUR}
    assert [slope.pid for slope in found.values() if not slope.is_flat] == [2]
    assert found[2, "fds"].per_hour == pytest.approx(360, rel=0.05)
    assert not list(slopes_of(samples(int(WARM_UP_S + MEASURED_S - 60))))

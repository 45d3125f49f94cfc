from __future__ import annotations

import random

import pytest
from faults.soak.history import Sample
from faults.soak.slopes import FLAT, MEASURED_S, WARM_UP_S, Flat, Slope, fit, slopes_of


def samples(
    seconds: int,
    *,
    pid: int = 1,
    begin: float = 0.0,
    fds: float = 40.0,
    fds_per_s: float = 0.0,
    rss_per_s: float = 0.0,
    redis: int = 20,
) -> list[Sample]:
    """A process's samples, five seconds apart, with the noise that real ones have, and sockets that come and go."""
    noise = random.Random(pid)
    found = []
    for t in range(0, seconds, 5):
        sockets = noise.randrange(5) + (30 if t > seconds / 2 else 0)
        found.append(
            Sample(
                t=begin + t, replica="r1", pid=pid, threads=20, redis=redis, sockets=sockets, listeners=8,
                rss=int(80e6 + rss_per_s * t + noise.randrange(500_000)), tasks=30 + 3 * sockets + noise.randrange(9),
                fds=int(fds + fds_per_s * t) + sockets + noise.randrange(6),
            )
        )  # fmt: skip
    return found


def test_a_line_is_fitted_as_it_lies() -> None:
    assert fit([0, 1, 2], [1, 3, 5]) == pytest.approx((2, 0))
    assert fit([0, 1, 2, 3], [0, 1, 1, 2]) == pytest.approx((0.6, 0.1414), abs=1e-4)
    with pytest.raises(ValueError, match="too few points"):
        fit([0, 1], [0, 1])


def test_what_a_load_explains_is_no_growth() -> None:
    times, load = [0.0, 1, 2, 3, 4, 5], [0.0, 0, 9, 9, 9, 1]
    values = [2 * t + 3 * one for t, one in zip(times, load, strict=True)]
    assert fit(times, values, load) == pytest.approx((2, 0), abs=1e-6)
    assert fit(times, values, load, [7.0] * 6) == pytest.approx((2, 0), abs=1e-6)  # a load that never changes
    assert fit(times, values)[0] > 3


def test_each_life_of_a_replica_has_its_own_slopes() -> None:
    long = int(WARM_UP_S + MEASURED_S + 60)
    lives = [*samples(long, pid=1), *samples(long, pid=2, begin=long, fds_per_s=0.1), *samples(30, pid=3)]
    found = {(slope.pid, slope.measure): slope for slope in slopes_of(lives)}
    assert set(found) == {(pid, measure) for pid in (1, 2) for measure in FLAT}
    assert [slope.pid for slope in found.values() if not slope.is_flat] == [2]
    assert found[2, "fds"].grown == pytest.approx(0.1 * found[2, "fds"].seconds, rel=0.1)
    assert not list(slopes_of(samples(int(WARM_UP_S + MEASURED_S - 60))))


def test_what_counts_as_flat_is_a_sum_and_a_rate_and_two_errors() -> None:
    assert Flat(once=6, per_hour=12).within(seconds=1_800) == 12
    most = FLAT["fds"].within(3_600)
    for grown, error, flat in [(most, 0.0, True), (most + 1, 0.4, False), (most + 1, 0.5, True), (-most, 0.0, True)]:
        assert Slope("r1", 1, "fds", grown, error, 3_600).is_flat is flat

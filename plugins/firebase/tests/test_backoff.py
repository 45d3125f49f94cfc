"""Back-off: full jitter, a cap, a ceiling per window."""

from __future__ import annotations

from itertools import pairwise

import pytest

from callboard_firebase.backoff import Backoff


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def attempts(backoff: Backoff, clock: Clock, until: float) -> list[float]:
    """When a server that always refuses is asked again."""
    times = []
    while clock.now < until:
        clock.now += backoff.delay()
        times.append(clock.now)
    return times


def test_delays_double_up_to_the_cap() -> None:
    backoff = Backoff(base_s=1, cap_s=60, per_window=100, clock=Clock(), jitter=lambda: 1.0)
    assert [backoff.delay() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_one_delay_may_have_a_lower_cap() -> None:
    backoff = Backoff(base_s=1, cap_s=60, per_window=100, clock=Clock(), jitter=lambda: 1.0)
    assert [backoff.delay(10) for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert backoff.delay() == 60
    assert Backoff(base_s=1, cap_s=5, clock=Clock(), jitter=lambda: 1.0).delay(10) == 1


def test_a_lower_cap_does_not_lift_the_ceiling() -> None:
    clock = Clock()
    backoff = Backoff(base_s=1, cap_s=60, clock=clock, jitter=lambda: 0.1)
    times = []
    while clock.now < 600:
        clock.now += backoff.delay(10)
        times.append(clock.now)
    assert max(sum(start <= time < start + 59.99 for time in times) for start in times) == 10


def test_jitter_covers_the_whole_range() -> None:
    for drawn in (0.0, 0.25, 1.0):
        backoff = Backoff(base_s=8, cap_s=60, clock=Clock(), jitter=lambda drawn=drawn: drawn)  # type: ignore[misc]
        assert backoff.delay() == 8 * drawn


def test_reset_starts_again_and_saturate_goes_to_the_cap() -> None:
    backoff = Backoff(base_s=1, cap_s=60, per_window=100, clock=Clock(), jitter=lambda: 1.0)
    backoff.delay()
    backoff.delay()
    backoff.reset()
    assert backoff.delay() == 1
    backoff.saturate()
    assert backoff.delay() == 60


def test_no_minute_holds_more_than_ten_attempts_whatever_the_jitter() -> None:
    clock = Clock()
    backoff = Backoff(base_s=1, cap_s=60, clock=clock, jitter=lambda: 0.0)
    times = attempts(backoff, clock, 600)
    assert max(sum(start <= time < start + 59.99 for time in times) for start in times) == 10


def test_success_between_the_failures_does_not_lift_the_ceiling() -> None:
    clock = Clock()
    backoff = Backoff(base_s=1, cap_s=60, clock=clock, jitter=lambda: 0.0)
    for _ in range(10):
        backoff.reset()
        clock.now += backoff.delay()
    backoff.reset()
    assert clock.now + backoff.delay() == pytest.approx(60)


def longest_wait(drawn: float, cap_s: float = 10) -> float:
    """Of ten minutes' outage, with these jitters."""
    clock = Clock()
    backoff = Backoff(base_s=1, cap_s=cap_s, clock=clock, jitter=lambda: drawn)
    times = attempts(backoff, clock, 600)
    return max(later - earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize("drawn", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_attempts_used_up_early_leave_no_long_wait(drawn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert longest_wait(drawn) <= 10.01
    # The control: not spread, and with draws like these, the ceiling alone makes the last one wait.
    monkeypatch.setattr("callboard_firebase.backoff._SPREAD_SHARE", 0.0)
    assert (longest_wait(drawn) > 15) == (drawn <= 0.5)


def test_without_the_ceiling_the_same_jitter_would_spin() -> None:
    backoff = Backoff(base_s=1, cap_s=60, per_window=10_000, clock=Clock(), jitter=lambda: 0.0)
    assert sum(backoff.delay() for _ in range(1_000)) == 0


def test_many_failures_stay_finite() -> None:
    backoff = Backoff(base_s=1, cap_s=60, per_window=1, window_s=0, clock=Clock(), jitter=lambda: 1.0)
    for _ in range(5_000):
        assert backoff.delay() <= 60

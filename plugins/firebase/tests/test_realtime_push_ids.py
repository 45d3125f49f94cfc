"""Keys that sort by time."""

from __future__ import annotations

import re

from callboard_firebase.realtime.push_ids import PushIds


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_twenty_characters_that_the_database_takes() -> None:
    ids = PushIds()
    assert all(re.fullmatch(r"[-0-9A-Z_a-z]{20}", ids.next()) for _ in range(1_000))


def test_the_time_is_where_firebases_own_clients_put_it() -> None:
    clock = Clock()
    clock.now = (
        1423088131153.5 / 1000
    )  # in February 2015, when Firebase's documentation got its example, -JhLeOlGIEjaIOFHR0xd
    assert PushIds(clock).next()[:8] == "-JhLeOlGIEjaIOFHR0xd"[:8]


def test_keys_ascend_within_a_millisecond_and_when_the_clock_goes_back() -> None:
    clock = Clock()
    ids = PushIds(clock)
    made = []
    for _ in range(1_000):
        made.append(ids.next())
        clock.now -= 0.5
    clock.now = Clock.now + 1
    made.append(ids.next())
    assert made == sorted(set(made))


def test_two_makers_do_not_meet() -> None:
    clock = Clock()
    assert len({PushIds(clock).next() for _ in range(1_000)}) == 1_000

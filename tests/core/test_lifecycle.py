from __future__ import annotations

from callboard.lifecycle import Lifecycle


def test_the_way_through_life() -> None:
    life = Lifecycle()
    assert str(life.state) == "starting"
    life.ready()
    assert (life.state, life.draining.is_set()) == ("ready", False)
    life.drain()
    life.drain()
    assert (life.state, life.draining.is_set()) == ("draining", True)
    life.stopped()
    assert life.state == "stopped"
    assert life.uptime_s() >= 0


def test_a_signal_during_the_start_is_not_forgotten() -> None:
    life = Lifecycle()
    life.drain()
    life.ready()
    assert life.state == "draining"

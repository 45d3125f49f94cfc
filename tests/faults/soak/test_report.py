from __future__ import annotations

from faults.soak.history import Began, Ended
from faults.soak.report import figures_of, report_of
from faults.soak.slopes import MEASURED_S, WARM_UP_S
from faults.soak.test_checker import Story
from faults.soak.test_slopes import samples
from faults.soak.verdict import Violation


def test_a_run_is_told_in_figures_and_tables() -> None:
    story = Story().broken().call("put", "LOST", 5, method="LEDGER.put", runs=2, value=5)
    story.call("a", "LOST", 1, 1).call("b", "UNAVAILABLE", "?", runs=0).open().sync(0).grow(1).add(1)
    story.say(Began(t=90, fault="a black hole", target="r1"), Ended(t=95, fault="a black hole", target="r1"))
    story.say(*samples(int(WARM_UP_S + MEASURED_S + 60)))
    figures = figures_of(story.entries)
    calls = {"calls": 3, "attempts": 7, "answered": 2, "unknown": 1, "refused": 1, "lost": 2, "replayed": 0}
    runs = {"runs_max": 1, "runs_max_retry_safe": 2}
    events = {"faults": 2, "connections": 1, "events": 2, "redis_connections_max": 20}
    assert figures.items() >= {**calls, **runs, **events}.items()
    text = report_of(story.entries, [])
    assert "| a black hole | 1 |" in text
    assert "| r1 | 295 s | fds |" in text
    assert text.endswith("every promise was kept")
    assert report_of([], [Violation("a rule", "somewhere", "this")]).endswith(
        "1 VIOLATIONS: 1 × a rule\n- a rule: somewhere: this"
    )

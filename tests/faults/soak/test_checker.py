"""The checker, on histories made by hand: one that is right, and for each promise one in which it is broken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults.soak import checker
from faults.soak.history import (
    Attempt,
    Began,
    Closed,
    Ended,
    Entry,
    Grown,
    Heard,
    History,
    Invoke,
    Left,
    Online,
    Opened,
    Owned,
    Quiet,
    Ran,
    Stopped,
    read,
)
from faults.soak.slopes import WARM_UP_S
from faults.soak.test_slopes import samples


@dataclass
class Story:
    """A history in the making; each step is a second after the one before, unless it says when."""

    entries: list[Entry] = field(default_factory=list)
    t: float = 0.0

    def wait(self, seconds: float) -> Story:
        self.t += seconds
        return self

    def call(self, op: str, *codes: str | int, method: str = "LEDGER.append", runs: int = 1, value: int = 0) -> Story:
        """A call with its attempts: the data of one that is answered, else its code; `?` for an unknown outcome."""
        self.t += 1
        self.entries.append(Invoke(t=self.t, op=op, method=method, user="ann", n=value))
        for code in codes:
            self.again(op, code)
        return self.ran(op, runs, value)

    def again(self, op: str, code: str | int) -> Story:
        began, self.t = self.t, self.t + 1
        about: dict[str, Any] = {"code": "OK", "data": code} if isinstance(code, int) else {"code": code}
        if code == "?":
            about = {"code": "ABORTED", "unknown": True}
        self.entries.append(Attempt(t=began, op=op, end=self.t, **about))
        return self

    def ran(self, op: str, runs: int, value: int = 0) -> Story:
        self.entries.append(Ran(t=self.t, op=op, runs=runs, value=value))
        return self

    def broken(self, fault: str = "Redis stopped", *, forgets: bool = False, seconds: float = 1) -> Story:
        self.entries.append(Began(t=self.t, fault=fault, target="Redis", forgets=forgets))
        self.t += seconds
        self.entries.append(Ended(t=self.t, fault=fault, target="Redis"))
        return self

    def open(self, user: str = "ann") -> Story:
        self.t += 1
        self.entries.append(Opened(t=self.t, screen=1, user=user))
        return self

    def close(self, code: int = 1000) -> Story:
        self.t += 1
        self.entries.append(Closed(t=self.t, screen=1, code=code))
        return self

    def sync(self, n: int, *, fence: int | None = None) -> Story:
        return self._hear("count.sync", n, fence=fence)

    def add(self, n: int, *, fence: int | None = 7, name: str = "") -> Story:
        return self._hear("count.add", n, fence=fence, name=name)

    def told(self, n: int, *, uid: str = "ann") -> Story:
        return self._hear("count.told", n, uid=uid)

    def grow(self, n: int) -> Story:
        self.entries.append(Grown(t=self.t, user="ann", n=n))
        return self

    def quiet(self, n: int) -> Story:
        self.t += 1
        self.entries.append(Quiet(t=self.t, numbers={"ann": n}))
        return self

    def say(self, *entries: Entry) -> Story:
        self.entries += entries
        return self

    def _hear(self, type: str, n: int, *, fence: int | None = None, uid: str = "ann", name: str = "") -> Story:  # noqa: A002
        self.t += 0.1
        about = name or f"{type} {n} {self.t}"
        self.entries.append(Heard(t=self.t, screen=1, type=type, id=about, uid=uid, n=n, fence=fence))
        return self


def notified(*numbers: int) -> Story:
    story = Story()
    for n in numbers:
        story.call(f"notify{n}", n, method="LEDGER.notify", value=n)
    return story


RIGHT = {
    "a retry gets the first answer": Story().call("a", "LOST", 1, 1),
    "a call that the end of the run cut short": Story().say(Invoke(t=1, op="a", method="LEDGER.append", user="ann")),
    "a read of what was written": Story().call("a", 5, method="LEDGER.read", value=5),
    "a refused call did not run": Story().call("a", "UNAVAILABLE", "RESOURCE_EXHAUSTED", runs=0),
    "of an unknown outcome anything is true": Story().call("a", "LOST", "?", "?", runs=0).call("b", "LOST", "?"),
    "an answer may be forgotten": Story().call("a", 1, runs=2).broken(forgets=True).again("a", 2),
    "a request outlives its sender": Story().call("a", "LOST", 1, runs=2).wait(50).broken(forgets=True),
    "a retry-safe call may run again when things break": (
        Story().broken().call("a", "LOST", 5, method="LEDGER.put", runs=2, value=5)
    ),
    "a late answer to an unknown outcome that was forgotten": (
        Story().call("a", "LOST", "?").broken(forgets=True).again("a", 1)
    ),
    "syncs and changes": Story().grow(1).open().sync(1).grow(2).add(2).grow(3).add(3).quiet(3).close(3001),
    "a change that the sync has covered": Story().grow(2).open().sync(2).add(1).add(2).grow(3).add(3).quiet(3),
    "a sync after a gap": Story().open().sync(1).add(2).sync(9).add(10),
    "an event twice, by one id": Story().open().sync(1).add(2, name="x").add(2, name="x").add(3),
    "two owners, the second with a higher fence": (
        Story().open().sync(1).add(2, fence=7).sync(2, fence=8).add(3, fence=8)
    ),
    "what was told, in order": notified(1, 2).open().told(1).told(2),
    "what was told while the screen was away": notified(1, 2, 3).open().told(1).told(3),
    "two whose order nobody awaited": (
        Story().call("b", "LOST", 1, method="LEDGER.notify", value=1).call("c", 2, method="LEDGER.notify", value=2)
        .open().told(2).told(1)
    ),
    "one that nobody awaited, and another": (
        Story().call("b", "LOST", method="LEDGER.notify", value=1).call("c", 2, method="LEDGER.notify", value=2)
        .open().told(2).told(1)
    ),
    "late, for it has just started": Story().open().sync(0).grow(1).wait(12).add(1).quiet(1),
    "late, for something is broken": Story().wait(40).open().sync(0).grow(1).wait(1).broken(seconds=20).add(1).quiet(1),
    "late, for one thing is broken after the other": (
        Story().wait(40).open().sync(0).grow(1).broken().wait(35).broken().wait(35).add(1)
    ),
    "late, for something was broken before": Story().wait(40).broken().open().sync(0).grow(1).wait(12).add(1).quiet(1),
    "not late": Story().wait(40).open().sync(0).grow(1).wait(9).add(1).quiet(1),
    "late, but the screen was away": (
        Story().wait(40).open().sync(0).close(3008).grow(1).wait(40).open().sync(1).quiet(1)
    ),
    "who is there is online": Story().say(Online(t=1, expected=["ann", "bob"], users=["bob", "ann"])),
    "as many connections as two pools may have": Story().say(*samples(30, redis=120)),
    "one owner": Story().say(Owned(t=1, user="ann", replicas=["r1"]), Stopped(t=2, replica="r1", status=0)),
}  # fmt: skip

WRONG = {
    "an acknowledged write that is lost": [
        Story().call("a", 1, runs=0),
        Story().call("a", "LOST", 5, method="LEDGER.put", runs=0, value=5),
        Story().call("a", 5, method="LEDGER.put", value=5).ran("a", 1, 4),
    ],
    "a write that ran too often": [
        Story().call("a", "LOST", 1, runs=2),
        Story().call("a", "?", runs=2),
        Story().call("a", "LOST", 1, runs=2).wait(1).broken(),
        Story().call("a", "LOST", 1, runs=3).broken(forgets=True),
        Story().broken(forgets=True).call("a", "LOST", 1, runs=2),
        Story().call("a", 1, runs=2).wait(1).broken(forgets=True),
        Story().call("a", "LOST", 5, method="LEDGER.put", runs=2, value=5),
        Story().broken().call("a", "LOST", 5, method="LEDGER.put", runs=3, value=5),
    ],
    "an answer that lies": [Story().call("a", 2), Story().call("a", 0)],
    "a replay that differs": [Story().call("a", 1, 2, runs=2)],
    "a refused write that ran": [Story().call("a", "UNAVAILABLE")],
    "an answer after an unknown outcome": [Story().call("a", "?", 1)],
    "a retry-safe call of unknown outcome": [Story().call("a", "?", method="LEDGER.put")],
    "an answer that nothing explains": [
        Story().call("a", "INTERNAL", runs=0),
        Story().call("a", "ABORTED", runs=0),
        Story().call("a", "IDEMPOTENCY_KEY_REUSED", runs=0),
        Story().call("a", "HTTP 500", runs=0),
    ],
    "a read that misses what was written": [Story().call("a", 4, method="LEDGER.read", value=5)],
    "an event to another user": [notified(1).open().told(1, uid="bob"), Story().open("bob").sync(1)],
    "an event that was not for this user": [Story().open().told(1), notified(1).open("bob").told(1, uid="bob")],
    "what was told out of order": [
        notified(1, 2).open().told(2).told(1),
        (
            Story().call("b", "LOST", 1, method="LEDGER.notify", value=1).call("c", 2, method="LEDGER.notify", value=2)
            .call("d", 3, method="LEDGER.notify", value=3).open().told(3).told(1).told(2)
        ),
    ],
    "a stale fence that passed": [Story().open().sync(1, fence=8).add(2, fence=7)],
    "a change before any sync": [Story().open().add(1), Story().open().sync(1).close().open().add(2)],
    "a gap without a sync": [Story().open().sync(1).add(3)],
    "changes out of order": [
        Story().open().sync(3).add(3).add(2),
        Story().open().sync(1).add(2, name="x").add(2, name="y"),
    ],
    "a screen that stays wrong": [
        Story().open().sync(1).quiet(2),
        Story().open().quiet(0),
        Story().open().sync(2).add(1).quiet(1),
    ],
    "wrong without having been away": [
        Story().wait(40).open().sync(0).grow(1).wait(12).add(1).quiet(1),
        Story().broken().wait(40).open().sync(0).grow(1).wait(12).add(1).quiet(1),
        notified(5).wait(40).open().sync(0).grow(1).told(5).wait(12).add(1).quiet(1),
        Story().wait(40).open().sync(0).grow(1).broken(seconds=20).wait(45).add(1),
        Story().wait(40).open().sync(0).grow(1).broken().wait(35).broken().wait(45).add(1),
        Story().wait(40).open().sync(0).grow(1).wait(15).close(),
        Story().wait(40).open().sync(0).grow(1).wait(15).broken().sync(1),
    ],
    "a listener without exactly one owner": [
        Story().say(Owned(t=1, user="ann", replicas=[])),
        Story().say(Owned(t=1, user="ann", replicas=["r1", "r2"])),
    ],
    "presence that is wrong": [
        Story().say(Online(t=1, expected=["ann"], users=[])),
        Story().say(Online(t=1, expected=["ann"], users=["ann", "bob"])),
    ],
    "left in Redis": [Story().say(Left(t=1, key="callboard:session:x", why="of a user, and all have left"))],
    "a replica that did not stop well": [Story().say(Stopped(t=1, replica="r1", status=-9))],
    "a socket closed for good": [Story().open().close(3500)],
    "a process that grows": [
        Story().say(*samples(600, fds_per_s=1 / 20)),
        Story().say(*samples(600, rss_per_s=40_000)),
    ],
    "too many connections to Redis": [Story().say(*samples(30, redis=140))],
}  # fmt: skip


@pytest.mark.parametrize("story", RIGHT.values(), ids=RIGHT)
def test_what_is_promised_passes(story: Story) -> None:
    assert checker.check(story.entries) == []


@pytest.mark.parametrize(
    ("rule", "story"),
    [pytest.param(rule, story, id=f"{rule} {n}") for rule, stories in WRONG.items() for n, story in enumerate(stories)],
)
def test_what_is_not_is_condemned(rule: str, story: Story) -> None:
    assert rule in {violation.rule for violation in checker.check(story.entries)}


def test_a_process_is_given_time_to_warm_up() -> None:
    growing = samples(int(WARM_UP_S), fds_per_s=1.0)
    assert checker.check([*growing, *samples(600, fds=growing[-1].fds, begin=growing[-1].t + 1)]) == []


def test_a_history_on_disk_is_judged_as_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "of" / "history.jsonl"
    entries = Story().call("a", "LOST", 1, runs=2).open().sync(1).quiet(1).entries
    with History(path) as history:
        for entry in entries:
            history.add(entry)
        assert history.now() >= 0
    assert list(read(path.read_bytes().splitlines())) == entries
    assert checker.main(str(path)) == 1
    assert capsys.readouterr().out == "a write that ran too often: a: 2 times, 1 allowed\n"
    path.write_bytes(b"")
    assert checker.main(str(path)) == 0

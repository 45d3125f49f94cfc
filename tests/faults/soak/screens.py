"""What a history says of screens, beside what docs/delivery.md promises of events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from faults.soak.calls import Faults, Op, ops_of
from faults.soak.history import Closed, Entry, Grown, Heard, Opened, Quiet
from faults.soak.verdict import Violation

# After a fault's end: its replica's sockets are back, its listeners taken over, the bus proved, all on a busy machine.
RECOVERY_S = 30.0
# While nothing is broken a screen learns of a change at once; this is what a machine with two cores may stand still.
LATE_S = 10.0


@dataclass
class Connection:
    """One WebSocket of a screen, from its opening to its end."""

    screen: int
    user: str
    opened: float
    closed: float = float("inf")
    heard: list[Heard] = field(default_factory=list)


def connections_of(records: Sequence[Entry]) -> list[Connection]:
    found: list[Connection] = []
    open_: dict[int, Connection] = {}
    for record in records:
        match record:
            case Opened(screen=screen):
                open_[screen] = Connection(screen, record.user, record.t)
                found.append(open_[screen])
            case Closed(screen=screen):
                open_.pop(screen).closed = record.t
            case Heard(screen=screen):
                open_[screen].heard.append(record)
    return found


class Shown:
    """What one connection has a screen show, by the rules for consumers; `breaches` of the rules for the service."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.breaches: list[tuple[str, str]] = []
        self._fence = 0
        self._seen: set[str] = set()
        self._last: tuple[int | None, int] | None = None
        """Fence and number of the last change since the last sync."""

    def take(self, event: Heard) -> None:
        if event.id in self._seen:
            return
        self._seen.add(event.id)
        if event.fence is not None:
            if event.fence < self._fence:
                self.breaches.append(("a stale fence that passed", f"{event.fence} after {self._fence}"))
                return
            self._fence = event.fence
        if event.type == "count.sync":
            self.number, self._last = event.n, None
            return
        if self.number is None:
            self.breaches.append(("a change before any sync", f"{event.n} at {event.t}"))
            return
        if event.n > self.number + 1:
            self.breaches.append(("a gap without a sync", f"{event.n} after {self.number} at {event.t}"))
        if self._last is not None and self._last[0] == event.fence and event.n <= self._last[1]:
            self.breaches.append(("changes out of order", f"{event.n} after {self._last[1]} at {event.t}"))
        self._last = event.fence, event.n
        self.number = max(self.number, event.n)


def check_screens(records: Sequence[Entry]) -> Iterator[Violation]:
    """Events: a user's own, in order, a sync before any change; and in the end every screen shows what is so."""
    connections = connections_of(records)
    notified = {op.invoke.n: op for op in ops_of(records).values() if op.invoke.method == "LEDGER.notify"}
    for connection in connections:
        where = f"screen {connection.screen} of {connection.user}, opened at {connection.opened}"
        shown = Shown()
        for event in connection.heard:
            if event.uid != connection.user:
                yield Violation("an event to another user", where, f"{event.type} of {event.uid} at {event.t}")
            elif event.type in ("count.sync", "count.add"):
                shown.take(event)
        for rule, what in shown.breaches:
            yield Violation(rule, where, what)
        for rule, what in _told_breaches(connection, notified):
            yield Violation(rule, where, what)
    yield from _check_quiet(records, connections)
    yield from _check_lateness(records, connections)


def _told_breaches(connection: Connection, notified: dict[int, Op]) -> Iterator[tuple[str, str]]:
    """Of what calls tell a user: nothing that nobody told, nothing of others, and one after the other as awaited."""
    seen: set[str] = set()
    last: Op | None = None
    for event in connection.heard:
        if event.type != "count.told" or event.id in seen:
            continue
        seen.add(event.id)
        op = notified.get(event.n)
        if op is None or op.invoke.user != connection.user:
            yield "an event that was not for this user", f"{event.n} at {event.t}"
            continue
        if last is not None and _was_awaited(op) and op.attempts[0].end < last.invoke.t:
            yield "what was told out of order", f"{event.n} after {last.invoke.n} at {event.t}"
        if last is None or op.invoke.t > last.invoke.t:
            last = op


def _was_awaited(op: Op) -> bool:
    """Whether its one attempt was answered: with several, one of them may have published later."""
    return len(op.attempts) == 1 and op.attempts[0].code == "OK"


def _check_quiet(records: Sequence[Entry], connections: Sequence[Connection]) -> Iterator[Violation]:
    for quiet in (record for record in records if isinstance(record, Quiet)):
        for connection in connections:
            if not connection.opened < quiet.t <= connection.closed:
                continue
            shown = Shown()
            for event in connection.heard:
                if event.t <= quiet.t and event.type in ("count.sync", "count.add"):
                    shown.take(event)
            number = quiet.numbers[connection.user]
            if shown.number != number:
                where = f"screen {connection.screen} of {connection.user}"
                yield Violation("a screen that stays wrong", where, f"shows {shown.number}, it is {number}")


@dataclass(frozen=True)
class Lateness:
    """How long a screen did not show a change, and from when on that cannot be because something is broken."""

    connection: Connection
    grown: Grown
    shown: float
    due: float

    @property
    def seconds(self) -> float:
        return max(0.0, self.shown - self.grown.t)

    @property
    def is_calm(self) -> bool:
        """Nothing was broken, before or meanwhile."""
        return self.due == self.grown.t


def lateness_of(records: Sequence[Entry], connections: Sequence[Connection]) -> Iterator[Lateness]:
    """For each change and each connection that was there before: until it is shown, or the end, if that is late."""
    faults = Faults(records)
    grown: dict[str, list[Grown]] = defaultdict(list)
    for record in records:
        if isinstance(record, Grown):
            grown[record.user].append(record)
    for connection in connections:
        steps = [one for one in grown[connection.user] if connection.opened < one.t < connection.closed]
        shown, at = Shown(), 0
        for event in connection.heard:
            if event.type not in ("count.sync", "count.add"):
                continue
            shown.take(event)
            while at < len(steps) and shown.number is not None and steps[at].n <= shown.number:
                yield _late(connection, steps[at], event.t, faults)
                at += 1
        last = records[-1].t if records else 0.0
        for step in steps[at:]:
            until = min(connection.closed, last)
            if until - step.t > LATE_S:
                yield _late(connection, step, until, faults)


def _late(connection: Connection, step: Grown, shown: float, faults: Faults) -> Lateness:
    due = max(step.t, RECOVERY_S)  # everything has just started, at first
    for began, ended in sorted(faults.spans):
        if began <= due + LATE_S and ended + RECOVERY_S > due:
            due = ended + RECOVERY_S
    return Lateness(connection, step, shown, due)


def _check_lateness(records: Sequence[Entry], connections: Sequence[Connection]) -> Iterator[Violation]:
    """ "Never wrong for longer than it is away": who is connected, and nothing is broken any more, is not away."""
    worst: dict[int, Lateness] = {}
    for late in lateness_of(records, connections):
        screen = late.connection.screen
        if late.shown > late.due + LATE_S and (screen not in worst or late.seconds > worst[screen].seconds):
            worst[screen] = late
    for screen, late in worst.items():
        what = f"{late.grown.n}, so since {late.grown.t}, not shown {late.seconds:.1f} s later"
        yield Violation("wrong without having been away", f"screen {screen} of {late.connection.user}", what)


def figures_of_screens(records: Sequence[Entry]) -> dict[str, float | int]:
    connections = connections_of(records)
    late = list(lateness_of(records, connections))
    calm = sorted(one.seconds for one in late if one.is_calm)
    heard = [event for connection in connections for event in connection.heard]
    return {
        "connections": len(connections),
        "events": len(heard),
        "duplicates": sum(len(c.heard) - len({event.id for event in c.heard}) for c in connections),
        "calm_changes": len(calm),
        "calm_p99_s": calm[int(len(calm) * 0.99)] if calm else 0.0,
        "late_max_s": max((one.seconds for one in late), default=0.0),
    }

"""What a history says of calls, beside what docs/delivery.md promises of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from faults.soak.history import Attempt, Began, Ended, Entry, Invoke, Ran
from faults.soak.verdict import Violation

RETRY_SAFE = {"LEDGER.put"}
WRITES = {"LEDGER.append", "LEDGER.block_write", "LEDGER.put"}
# Refusals before the method began. A deadline, a cancellation and a broken connection say nothing of that.
NOT_RUN = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
PASSING = NOT_RUN | {"DEADLINE_EXCEEDED", "CANCELLED", "LOST", "HTTP 502", "HTTP 503", "HTTP 504"}
# A request that was given up may lie in the buffer of a process that is stopped, and run when it is woken.
LINGERS_S = 90.0


@dataclass
class Op:
    """One call, with all its attempts."""

    invoke: Invoke
    attempts: list[Attempt] = field(default_factory=list)
    ran: Ran | None = None

    @property
    def ended(self) -> float:
        """When the last of its requests cannot run any more."""
        return max(a.end + (LINGERS_S if a.code == "LOST" else 0.0) for a in self.attempts)

    @property
    def answers(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.code == "OK"]


def ops_of(records: Sequence[Entry]) -> dict[str, Op]:
    ops: dict[str, Op] = {}
    for record in records:
        match record:
            case Invoke(op=op):
                ops[op] = Op(record)
            case Attempt(op=op):
                ops[op].attempts.append(record)
            case Ran(op=op):
                ops[op].ran = record
    return ops


class Faults:
    """When something was broken, and when Redis forgot."""

    def __init__(self, records: Sequence[Entry]) -> None:
        open_: dict[tuple[str, str], float] = {}
        self.spans: list[tuple[float, float]] = []
        self.forgot: list[tuple[float, float]] = []
        forgetting: set[tuple[str, str]] = set()
        for record in records:
            match record:
                case Began(t=t, fault=fault, target=target):
                    open_[fault, target] = t
                    if record.forgets:
                        forgetting.add((fault, target))
                case Ended(t=t, fault=fault, target=target):
                    span = open_.pop((fault, target)), t
                    self.spans.append(span)
                    if (fault, target) in forgetting:
                        forgetting.discard((fault, target))
                        self.forgot.append(span)
        self.spans += [(began, float("inf")) for began in open_.values()]
        self.forgot += [(open_[key], float("inf")) for key in forgetting]

    def any_in(self, since: float, until: float) -> bool:
        """Whether something was broken in that time."""
        return any(began <= until and ended >= since for began, ended in self.spans)

    def forgets_in(self, since: float, until: float) -> int:
        return sum(began <= until and ended >= since for began, ended in self.forgot)


def check_calls(records: Sequence[Entry]) -> Iterator[Violation]:
    """Writes: acknowledged ones are there, none ran twice, and no answer lies."""
    faults = Faults(records)
    for op in ops_of(records).values():
        if op.attempts:
            yield from _check_codes(op)
            yield from _check_answers(op, faults)
            if op.invoke.method in WRITES:
                yield from _check_runs(op, faults)


def _check_codes(op: Op) -> Iterator[Violation]:
    for attempt in op.attempts:
        if attempt.code not in PASSING | {"OK"} and not (attempt.code == "ABORTED" and attempt.unknown):
            yield Violation("an answer that nothing explains", op.invoke.op, f"{op.invoke.method}: {attempt.code}")
        if attempt.unknown and op.invoke.method in RETRY_SAFE:
            yield Violation("a retry-safe call of unknown outcome", op.invoke.op, op.invoke.method)


def _check_answers(op: Op, faults: Faults) -> Iterator[Violation]:
    for one, other in zip(op.answers, op.answers[1:], strict=False):
        if one.data != other.data and not faults.forgets_in(one.t, other.end):
            yield Violation("a replay that differs", op.invoke.op, f"{one.data}, then {other.data}")
    unknown = [attempt for attempt in op.attempts if attempt.unknown]
    for answer in op.answers:
        if unknown and unknown[0].end <= answer.t and not faults.forgets_in(unknown[0].t, answer.end):
            yield Violation("an answer after an unknown outcome", op.invoke.op, f"{answer.data} at {answer.end}")
    if op.invoke.method == "LEDGER.read":
        for answer in op.answers:
            if answer.data != op.invoke.n:
                yield Violation(
                    "a read that misses what was written", op.invoke.op, f"{answer.data}, not {op.invoke.n}"
                )


def _check_runs(op: Op, faults: Faults) -> Iterator[Violation]:
    key, runs = op.invoke.op, op.ran.runs if op.ran else 0
    if op.answers and not runs:
        yield Violation("an acknowledged write that is lost", key, f"answered at {op.answers[0].end}")
    if not op.answers and runs and all(attempt.code in NOT_RUN for attempt in op.attempts):
        yield Violation("a refused write that ran", key, f"{runs} times")
    if op.invoke.method in RETRY_SAFE:
        if op.answers and op.ran and op.ran.value != op.invoke.n:
            yield Violation("an acknowledged write that is lost", key, f"{op.ran.value}, not {op.invoke.n}")
        broken = faults.any_in(op.invoke.t - LINGERS_S, op.ended)
        allowed = len(op.attempts) if broken else 1
    else:
        allowed = 1 + faults.forgets_in(op.invoke.t, op.ended)
        for answer in op.answers:
            if answer.data is None or not 1 <= answer.data <= runs:
                yield Violation("an answer that lies", key, f"run {answer.data} of {runs}")
    if runs > allowed:
        yield Violation("a write that ran too often", key, f"{runs} times, {allowed} allowed")


def figures_of_calls(records: Sequence[Entry]) -> dict[str, float | int]:
    ops = ops_of(records)
    attempts = [attempt for op in ops.values() for attempt in op.attempts]
    writes = [op for op in ops.values() if op.invoke.method in WRITES and op.ran]
    codes = Counter(attempt.code for attempt in attempts)
    per_runs: dict[bool, list[int]] = defaultdict(list)
    for op in writes:
        per_runs[op.invoke.method in RETRY_SAFE].append(op.ran.runs if op.ran else 0)
    return {
        "calls": len(ops),
        "attempts": len(attempts),
        "answered": sum(bool(op.answers) for op in ops.values()),
        "unknown": sum(any(a.unknown for a in op.attempts) for op in ops.values()),
        "replayed": sum(attempt.replayed for attempt in attempts),
        "refused": sum(codes[code] for code in NOT_RUN),
        "lost": sum(codes[code] for code in ("LOST", "HTTP 502", "HTTP 504")),
        "runs_max": max(per_runs[False], default=0),
        "runs_max_retry_safe": max(per_runs[True], default=0),
    }

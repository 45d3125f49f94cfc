"""Reads a history when all is over, and says what was not as promised.

python -m faults.soak.checker .artifacts/soak.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults.soak import history
from faults.soak.calls import check_calls
from faults.soak.history import Closed, Entry, Left, Online, Owned, Stopped
from faults.soak.screens import check_screens
from faults.soak.slopes import check_slopes
from faults.soak.verdict import Violation


def check(records: Sequence[Entry]) -> list[Violation]:
    """Everything that the records, in order of time, show to be wrong."""
    return [*check_calls(records), *check_screens(records), *_check_rest(records), *check_slopes(records)]


def _check_rest(records: Sequence[Entry]) -> Iterator[Violation]:
    """What is so when the faults are over: one owner for each user, and nothing left when they have gone."""
    for record in records:
        match record:
            case Owned(user=user, replicas=replicas) if len(replicas) != 1:
                yield Violation("a listener without exactly one owner", user, ", ".join(replicas) or "nobody")
            case Online(expected=expected, users=users) if set(expected) != set(users):
                wrong = ", ".join(sorted(set(expected) ^ set(users)))
                yield Violation("presence that is wrong", wrong, f"{len(users)} online, {len(expected)} have a screen")
            case Stopped(replica=replica, status=status) if status != 0:
                yield Violation("a replica that did not stop well", replica, f"exit status {status}")
            case Closed(screen=screen, code=code) if code >= 3500:
                yield Violation("a socket closed for good", f"screen {screen}", f"close code {code}")
            case Left(key=key, why=why):
                yield Violation("left in Redis", key, why)


def main(path: str) -> int:
    with Path(path).open("rb") as lines:
        violations = check(list(history.read(lines)))
    sys.stdout.writelines(f"{violation}\n" for violation in violations)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

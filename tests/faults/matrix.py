"""The fault matrix: what is broken on purpose, and the table of what the tests measured.

pytest -m fault … | python -m faults.matrix          # the table; exit status 1 when a row has no passed test
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

ROWS = {
    1: "Redis killed, back in 1 s",
    2: "Redis down for 60 s",
    3: "Redis stopped (SIGSTOP) for 30 s",
    4: "a black hole on the pub/sub connection",
    5: "a reply lost: SET NX, PUBLISH, EVAL",
    6: "latency of 50, 500, 2,000 ms with jitter; 1 byte/s",
    7: "a cluster's master killed",
    8: "the Serverless simulator's forbidden commands",
    9: "TLS: wrong authority, expired, plain text",
    10: "Redis takes no more clients",
    11: "Redis out of memory; eviction",
    12: "Redis drops a slow subscriber",
    13: "a replica killed in mid-call, retried elsewhere",
    14: "the owner of a listener killed",
    15: "the owner stopped for twice its lease, and woken",
    16: "SIGTERM under load",
    17: "a thread overruns its deadline",
    18: "200 blocking calls of one plugin",
    19: "Firestore ends or refuses a stream, in every way",
    20: "Firestore refuses for ever",
    21: "1,000 listeners on 100 streams",
    22: "Firestore and the Realtime Database away, mute, revoked",
    23: "sockets that do not read beside 1,000 healthy ones",
    24: "2,000 sockets come back at once; idle connections cut",
    25: "10,000 bad bodies",
    26: "attacks on the raw socket",
    27: "authorisation: tokens, tickets, origins, other users'",
    28: "leakage of secrets; garbage planted in Redis",
    29: "all of it at random, under load, behind nginx",
}
_PREFIX = "FAULT "
_ABOUT = ("row", "control", "test", "outcome")


def told(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What the fault tests of a pytest run said."""
    return [json.loads(line.removeprefix(_PREFIX)) for line in lines if line.startswith(_PREFIX)]


def table(found: list[dict[str, Any]]) -> tuple[str, list[int]]:
    """A table in Markdown, a line for each test, and the rows that lack a test or a control that passed."""
    lines = ["| row | fault | test | control | outcome | figures |", "|---|---|---|---|---|---|"]
    lacking: list[int] = []
    for row, fault in ROWS.items():
        of_row = [one for one in found if row in one["row"]]
        passed = {one["control"] for one in of_row if one["outcome"] == "passed"}
        if not (passed >= {False, True} or "within" in passed):
            lacking.append(row)
        for test, control, outcome, figures in _grouped(of_row) or [("–", False, "not run", "")]:
            mark = "with its control" if control == "within" else "control" if control else ""
            lines.append(f"| {row} | {fault} | {test} | {mark} | {outcome} | {figures} |")
    return "\n".join(lines), lacking


def _grouped(found: list[dict[str, Any]]) -> list[tuple[str, bool | str, str, str]]:
    """Test, control, outcome and figures; the cases of a parametrised test are one, their figures ranges."""
    groups: dict[tuple[str, bool | str, str], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["test"].partition("[")[0], one["control"], one["outcome"]), []).append(one)
    rows = []
    for (test, control, outcome), cases in groups.items():
        names = dict.fromkeys(name for case in cases for name in case if name not in _ABOUT)
        figures = ", ".join(f"{name} {_span([case[name] for case in cases if name in case])}" for name in names)
        rows.append((f"{test} × {len(cases)}" if len(cases) > 1 else test, control, outcome, figures))
    return rows


def _span(values: list[Any]) -> str:
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} … {distinct[-1]}"


def main() -> int:
    found = told(sys.stdin)
    text, lacking = table(found)
    failed = sorted({one["test"] for one in found if one["outcome"] != "passed"})
    if failed:
        text += f"\n\nfailed: {', '.join(failed)}"
    if lacking:
        text += f"\n\nrows without a test and a control that passed: {', '.join(map(str, lacking))}"
    sys.stdout.write(text + "\n")
    return 1 if failed or lacking else 0


if __name__ == "__main__":
    sys.exit(main())

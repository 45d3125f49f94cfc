"""Hours of faults under load, and what came of it: exit status 1 when a promise was broken.

python -m faults.soak [--minutes 30] [--seed N]          # make soak MINUTES=30
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from pathlib import Path

from faults.soak.report import report_of
from faults.soak.run import Plan, soak

ARTIFACTS = Path(__file__).parents[3] / ".artifacts"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    logging.getLogger("callboard_local").setLevel(logging.ERROR)
    folder = ARTIFACTS / f"soak-{given.seed}"
    say(f"seed {given.seed}, {given.minutes:g} minutes; the history and the replicas' logs go to {folder}")
    outcome = asyncio.run(soak(Plan(given.seed, given.minutes * 60, folder), say))
    say(report_of(outcome.records, outcome.violations))
    if outcome.violations:
        say(f"\nlook at {folder}: `grep` the call, the screen or the user in history.jsonl, the times in r*.log;")
        say(f"`python -m faults.soak.checker {folder}/history.jsonl` judges it again, seed {given.seed} repeats it")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())

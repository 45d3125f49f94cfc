"""The short form of `make soak`: the same load, checker and balancer, a handful of short faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.soak.report import figures_of, report_of
from faults.soak.run import Plan, soak

from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.nginx]

SEED = 20
FAULTS = (
    "a replica killed",
    "a replica stopped",
    "a replica replaced",
    "Redis killed, back empty",
    "a black hole",
    "all clients gone at once",
)


@pytest.mark.fault(row=29)
@pytest.mark.timeout(420)
async def test_every_promise_holds_while_things_break(tmp_path: Path, fault: Fault) -> None:
    plan = Plan(SEED, 45, tmp_path, rest_s=(2, 4), length=0.3, only=FAULTS)
    outcome = await soak(plan)
    assert outcome.violations == [], report_of(outcome.records, outcome.violations)
    figures = figures_of(outcome.records)
    fault.figure(**figures)
    # That it was a test: things broke, calls were answered all the same, and events came.
    assert figures["faults"] >= 3
    assert figures["answered"] > 200
    assert figures["events"] > 200


@pytest.mark.fault(row=29, control=True)
@pytest.mark.timeout(420)
async def test_without_keys_writes_run_twice_and_the_checker_sees_it(tmp_path: Path, fault: Fault) -> None:
    plan = Plan(
        SEED, 15, tmp_path, rest_s=(2, 4), length=0.3, only=("a replica killed",), callers=24, slow=0.8, keyed=False
    )
    outcome = await soak(plan)
    twice = [violation for violation in outcome.violations if violation.rule == "a write that ran too often"]
    fault.figure(ran_too_often=len(twice), runs_max=figures_of(outcome.records)["runs_max"])
    assert twice

"""Leases against a model of them: any owners, in any order. A rule lets a lease expire; another has Redis lose it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import MakeSettings, Recorded

from callboard.connections import Connections
from callboard.fleet import leases
from callboard.fleet.leases import INDEX, Lease, Leases
from callboard.messages import new_id

T = TypeVar("T")
OWNERS = st.sampled_from(("ann's", "bob's", "cas's"))
TTL_S = 3_600


class Tenures(RuleBasedStateMachine):
    """Three owners of one lease. `runner`, `leases` and `commands` are set by the test."""

    runner: asyncio.Runner
    leases: Leases
    commands: Any
    """The client: a Redis."""

    held: Bundle[Lease] = Bundle("held")
    """Every lease that was ever had."""

    def __init__(self) -> None:
        super().__init__()
        self.key = f"callboard:lease:{{{new_id()}}}"
        self.owner: str | None = None
        self.expired = False
        self.fence = 0
        self.lost = False

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    def runs(self) -> bool:
        return self.owner is not None and not self.expired

    def is_held(self) -> bool:
        return self.owner is not None

    @rule(target=held, owner=OWNERS)
    def acquire(self, owner: str) -> Any:
        lease = self.run(self.leases.acquire(self.key, owner, TTL_S))
        if self.runs():
            assert (lease is None) == (owner != self.owner)
            if lease is None:
                return multiple()
            assert lease.fence == self.fence
            return lease
        assert lease is not None
        assert lease.taken_over == (self.owner not in (None, owner))
        assert lease.fence > self.fence or (self.lost and lease.fence == self.fence), "a new tenure needs a new fence"
        self.owner, self.expired, self.fence, self.lost = owner, False, lease.fence, False
        return lease

    @rule(lease=held)
    def renew(self, lease: Lease) -> None:
        assert self.run(lease.renew()) == (self.runs() and self.owner == lease.owner)

    @rule(lease=held)
    def release(self, lease: Lease) -> None:
        self.run(lease.release())
        if self.owner == lease.owner:
            self.owner, self.expired = None, False

    @precondition(runs)
    @rule()
    def expire(self) -> None:
        self.run(self.commands.hset(self.key, "expires", "1"))
        self.expired = True

    @precondition(is_held)
    @rule()
    def sweep(self) -> None:
        self.run(self.commands.zadd(INDEX, {self.key: 1.0}, xx=True))
        self.run(self.leases.sweep())
        if self.expired:
            self.owner, self.expired = None, False

    @precondition(is_held)
    @rule()
    def lose(self) -> None:
        """A failover forgot it."""
        self.run(self.commands.delete(self.key))
        self.owner, self.expired, self.lost = None, False, True

    @invariant()
    def one_owner_at_most_and_what_is_held_cannot_be_evicted(self) -> None:
        assert self.run(self.leases.owner(self.key)) == (self.owner if self.runs() else None)
        if self.is_held():
            assert self.run(self.commands.pttl(self.key)) == -1
            assert self.run(self.commands.zscore(INDEX, self.key)) is not None
        else:
            assert self.run(self.commands.pttl(self.key)) != -1

    def teardown(self) -> None:
        self.run(self.commands.delete(self.key))
        self.run(self.commands.zrem(INDEX, self.key))


@pytest.fixture
def tenures(make_settings: MakeSettings, recorded: Recorded) -> Iterator[type[Tenures]]:
    with asyncio.Runner() as runner:

        async def connect() -> Connections:
            return Connections(make_settings(), recorded.telemetry, attempt_timeout_s=10, call_limit_s=20)

        connections = runner.run(connect())
        Tenures.runner, Tenures.commands, Tenures.leases = runner, connections.commands, Leases(connections)
        yield Tenures
        runner.run(connections.__aexit__(None, None, None))


def run(tenures: type[Tenures], *phases: Phase, examples: int) -> None:
    run_state_machine_as_test(
        tenures,
        settings=hypothesis_settings(
            max_examples=examples, stateful_step_count=30, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), print_blob=False, phases=phases, report_multiple_bugs=False,
        ),
    )  # fmt: skip


def test_owners_in_any_order(tenures: type[Tenures]) -> None:
    run(tenures, Phase.generate, Phase.shrink, examples=60)


@pytest.mark.parametrize(
    ("script", "protection", "without"),
    [
        ("_ACQUIRE", "if running and l[1] ~= owner then return nil end", ""),
        ("_ACQUIRE", "math.max(fence + 1, now)", "fence"),
        ("_ACQUIRE", "redis.call('PERSIST', key)", ""),
        ("_RENEW", "if not lease_holds(KEYS[1], ARGV[1]) then return -1 end", ""),
        ("_RELEASE", "redis.call('HGET', KEYS[1], 'owner')", "ARGV[1]"),
        ("_SWEEP", "if tonumber(expires) > now_ms() then return 'held' end", ""),
    ],
)
def test_it_shows_when_a_protection_is_taken_away(
    tenures: type[Tenures], monkeypatch: pytest.MonkeyPatch, script: str, protection: str, without: str
) -> None:
    text = getattr(leases, script)
    assert protection in text
    monkeypatch.setattr(leases, script, text.replace(protection, without))
    monkeypatch.setattr(leases, "_IS_FREE", "return 1")  # a look ahead that spares a write; not what protects
    with pytest.raises(AssertionError):
        run(tenures, Phase.generate, examples=500)

"""The records of keyed calls against a model of them, and against what they promise: any owners, in any order.

Leases do not expire by themselves here: a rule lets one expire. What Redis may do at any time are rules as well: to
evict what has a TTL, and to lose a record in a failover.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis
from redis.exceptions import MovedError
from support import MakeSettings, Recorded

from callboard.connections import Connections
from callboard.fleet import scripts
from callboard.messages import new_id
from callboard.rpc import records
from callboard.rpc.records import Claim, Records
from callboard.settings import Settings
from callboard_local import ValkeyCluster, ValkeyServer

T = TypeVar("T")
RUNNING = "callboard:idem-running"
UNKNOWN = b"unknown"
RARELY = st.sampled_from((False, False, True))
ARGUMENTS = st.sampled_from(("these", "these", "these", "those"))


@dataclass
class Model:
    """What the record of one key should be, and what was told of it since it was last absent."""

    state: Literal["absent", "running", "done"] = "absent"
    owner: str = ""
    expired: bool = False
    settled: bool = False
    arguments: str = ""
    answer: bytes = b""
    finisher: str = ""

    granted: set[str] = field(default_factory=set)
    """Whose method may have run: claims that were granted, and not given back."""
    told: list[bytes] = field(default_factory=list)

    def take(self, claim: Claim) -> None:
        self.state, self.owner, self.expired, self.settled = "running", claim.owner, False, False
        self.arguments = claim.fingerprint

    def end(self, answer: bytes, finisher: str = "") -> None:
        self.state, self.owner, self.answer, self.finisher = "done", "", answer, finisher


def claimed(model: Model, claim: Claim, *, retry_safe: bool) -> str:
    """The outcome of a claim, by the contract."""
    if model.state != "absent" and model.arguments != claim.fingerprint:
        return "reused"
    if model.state == "done":
        return "done"
    if model.state == "running" and model.owner != claim.owner:
        if not model.expired:
            return "running"
        if not retry_safe:
            model.end(UNKNOWN)
            return "unknown"
    model.take(claim)
    return "claimed"


def finished(model: Model, claim: Claim, answer: bytes, *, told: bool) -> str:
    """The outcome of an end, by the contract."""
    if model.state == "done" and model.finisher == claim.owner:
        return "stored"
    if model.state != "absent" and model.arguments != claim.fingerprint:
        return "reused"
    if model.state == "done" and (model.finisher or not told):
        return "done"
    if model.state == "running" and model.owner != claim.owner and not model.expired:
        return "running"
    lost = model.state == "absent"
    model.arguments = claim.fingerprint
    model.end(answer, claim.owner)
    return "restored" if lost else "stored"


class Owners(RuleBasedStateMachine):
    """Any number of claims on one key. `runner`, `records` and `commands` are set by the test."""

    runner: asyncio.Runner
    records: Records
    commands: Any
    """The client: a Redis."""

    waiting: Bundle[Claim] = Bundle("waiting")
    """Claims whose method has not begun, whether they were granted or not."""
    begun: Bundle[Claim] = Bundle("begun")

    def __init__(self) -> None:
        super().__init__()
        self.name = new_id()
        self.key = f"callboard:idem:{self.name}"
        self.model = Model()
        self.retry_safe: set[str] = set()
        self.answers = 0

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    def runs(self) -> bool:
        return self.model.state == "running"

    # -- what owners do

    @rule(target=begun, arguments=ARGUMENTS, retry_safe=RARELY)
    def start(self, arguments: str, retry_safe: bool) -> Any:
        return self.begin(self.claim(arguments, retry_safe))

    @rule(target=waiting, arguments=ARGUMENTS, retry_safe=RARELY)
    def claim(self, arguments: str, retry_safe: bool) -> Claim:
        claim = Claim(self.name, new_id(), arguments)
        if retry_safe:
            self.retry_safe.add(claim.owner)
        self.ask(claim)
        return claim

    @rule(claim=waiting)
    def ask(self, claim: Claim) -> None:
        """At first, while another runs, or because the reply was lost."""
        model, retry_safe = self.model, claim.owner in self.retry_safe
        outcome, answer = self.run(self.records.claim(claim, retry_safe=retry_safe))
        others = model.granted - {claim.owner}
        assert outcome == claimed(model, claim, retry_safe=retry_safe)
        if outcome == "claimed":
            assert retry_safe or not others, "a plain write may have run twice"
            model.granted.add(claim.owner)
        if outcome == "done":
            assert answer is not None
            self.tell(answer)
        if outcome == "unknown":
            self.tell(UNKNOWN)

    @rule(target=begun, claim=consumes(waiting))
    def begin(self, claim: Claim) -> Any:
        if claim.owner not in self.model.granted:
            return multiple()
        claim.began = True
        return claim

    @rule(claim=st.one_of(waiting, begun))
    def renew(self, claim: Claim) -> None:
        model = self.model
        expected = "held" if self.runs() and model.owner == claim.owner else "lost"
        if model.state == "absent" and claim.began:
            expected = "restored"
        assert self.run(self.records.renew([claim])) == [expected]
        if expected != "lost":
            model.take(claim)
            model.granted.add(claim.owner)

    @rule(claim=begun, told=RARELY)
    def finish(self, claim: Claim, told: bool) -> None:
        self.answers += 1
        answer = b"answer %d" % self.answers
        ended = self.run(self.records.finish(claim, answer, told=told))
        already = self.model.finisher == claim.owner
        assert ended.outcome == finished(self.model, claim, answer, told=told)
        if ended.outcome in ("stored", "restored") and not already:
            self.tell(answer)
        if ended.outcome == "done":
            assert ended.answer is not None
            self.tell(ended.answer)

    @rule(claim=consumes(waiting))
    def forget(self, claim: Claim) -> None:
        """The method never began."""
        held = self.runs() and self.model.owner == claim.owner
        assert self.run(self.records.forget(claim)).outcome == ("released" if held else "lost")
        self.model.granted.discard(claim.owner)
        if held:
            self.model.state = "absent"

    def tell(self, answer: bytes) -> None:
        """A caller hears this: what all others heard, or more than the "unknown" they heard."""
        known = [told for told in self.model.told if told != UNKNOWN]
        assert answer in known or not known, f"{answer!r} after {self.model.told}"
        self.model.told.append(answer)

    # -- what happens to them

    @precondition(lambda self: self.runs() and not self.model.expired)
    @rule()
    def expire(self) -> None:
        self.run(self.commands.hset(self.key, "expires", "1"))
        self.model.expired = True

    @precondition(runs)
    @rule()
    def sweep(self) -> None:
        self.run(self.commands.zadd(RUNNING, {self.name: 1.0}, xx=True))
        self.run(self.records.sweep())
        self.model.settled = self.model.settled or self.model.expired

    @precondition(lambda self: self.model.state == "done" or self.model.settled)
    @rule()
    def evict(self) -> None:
        self.lose()

    @precondition(runs)
    @rule()
    def lose(self) -> None:
        """A failover forgot it."""
        self.run(self.commands.delete(self.key))
        self.model = Model()

    @invariant()
    def what_runs_cannot_be_evicted_and_will_be_swept(self) -> None:
        ttl = self.run(self.commands.pttl(self.key))
        if self.model.state == "absent":
            assert ttl == -2
        elif self.runs() and not self.model.settled:
            assert ttl == -1
            assert self.run(self.commands.zscore(RUNNING, self.name)) is not None
        else:
            assert ttl > 0

    def teardown(self) -> None:
        self.run(self.commands.delete(self.key))
        self.run(self.commands.zrem(RUNNING, self.name))


@pytest.fixture
def owners(make_settings: MakeSettings, recorded: Recorded) -> Iterator[type[Owners]]:
    with asyncio.Runner() as runner:

        async def connect() -> Connections:
            return Connections(make_settings(), recorded.telemetry, attempt_timeout_s=10, call_limit_s=20)

        connections = runner.run(connect())
        Owners.runner, Owners.commands = runner, connections.commands
        Owners.records = Records(connections, lease_ttl_s=3_600, record_ttl_s=3_600, unknown_answer=UNKNOWN)
        yield Owners
        runner.run(connections.__aexit__(None, None, None))


def run(owners: type[Owners], *phases: Phase, examples: int) -> None:
    run_state_machine_as_test(
        owners,
        settings=hypothesis_settings(
            max_examples=examples, stateful_step_count=30, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), print_blob=False, phases=phases, report_multiple_bugs=False,
        ),
    )  # fmt: skip


def test_owners_in_any_order(owners: type[Owners]) -> None:
    run(owners, Phase.generate, Phase.shrink, examples=60)


@pytest.mark.parametrize(
    ("script", "protection", "without"),
    [
        ("_CLAIM", "if ARGV[4] == '0' then", "if false then"),
        ("_CLAIM", "redis.call('HSET', KEYS[1], 'answer', ARGV[6])", ""),
        ("_FINISH", "(r[1] or ARGV[5] == '0')", "r[1]"),
        ("_FINISH", "if r[4] and r[4] ~= ARGV[1]", "if false"),
        ("_RENEW", "if r[2] or (r[1] or ARGV[4] == '0') and r[1] ~= ARGV[1]", "if false"),
        ("_FORGET", "redis.call('HGET', KEYS[1], 'owner') == ARGV[1]", "true"),
        ("_SETTLE", "if tonumber(r[3]) > now_ms() then return 0 end", ""),
    ],
)
def test_it_shows_when_a_protection_is_taken_away(
    owners: type[Owners], monkeypatch: pytest.MonkeyPatch, script: str, protection: str, without: str
) -> None:
    text = getattr(records, script)
    assert protection in text
    monkeypatch.setattr(records, script, text.replace(protection, without))
    with pytest.raises(AssertionError):
        run(owners, Phase.generate, examples=2_000)


@pytest.mark.anyio
async def test_the_index_keeps_what_was_entered_anew_since_the_sweep_looked(connections: Connections) -> None:
    names = new_id(), new_id()
    await connections.commands.zadd(RUNNING, {names[0]: 10.5, names[1]: 12.5})
    await scripts.run(connections, records._DROP, (RUNNING,), "11.000", *names, "never there")
    assert [await connections.commands.zscore(RUNNING, name) for name in names] == [None, 12.5]
    await connections.commands.zrem(RUNNING, names[1])


# -- eviction ---------------------------------------------------------------------------------------------------------

EVICTING = ["--maxmemory", "8mb", "--maxmemory-policy", "volatile-lru"]


async def evict(server: ValkeyServer) -> None:
    async with Redis(host=server.host, port=server.port) as client:
        for number in range(100):
            try:
                await client.set(f"{number}", "x" * 200_000, ex=60)
            except MovedError:  # another node's
                continue


@pytest.mark.anyio
async def test_evictions_are_counted_over_all_nodes() -> None:
    with ValkeyCluster(masters=2, replicas=0, args=EVICTING) as cluster:
        settings = Settings(redis_host=cluster.host, redis_port=cluster.port)
        async with Connections(settings, Recorded().telemetry) as connections:
            counted = Records(connections, lease_ttl_s=30, record_ttl_s=30, unknown_answer=UNKNOWN)
            assert await counted.evicted_keys() == 0
            of_each = []
            for server in cluster.nodes:
                await evict(server)
                async with Redis(host=server.host, port=server.port) as client:
                    of_each.append((await client.info("stats"))["evicted_keys"])
            assert min(of_each) > 0
            assert await counted.evicted_keys() == sum(of_each)


@pytest.mark.anyio
async def test_where_info_is_not_allowed_evictions_are_not_known(own_valkey: ValkeyServer) -> None:
    own_valkey.ask("ACL", "SETUSER", "default", "-info")
    settings = Settings(redis_host=own_valkey.host, redis_port=own_valkey.port, redis_cluster="false")
    async with Connections(settings, Recorded().telemetry) as connections:
        counted = Records(connections, lease_ttl_s=30, record_ttl_s=30, unknown_answer=UNKNOWN)
        assert await counted.evicted_keys() is None
        assert connections.state == "ok"

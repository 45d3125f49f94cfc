"""Keyed calls on replicas that die, stop and wake up in the middle of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from faults.fleet import Fleet
from faults.keyed_calls import History, Told, Write, lies

from callboard_local import FaultProxy, ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio
KEYS, KILLS, WRITES_PER_S = 1_000, 8, 25.0


@pytest.fixture
async def fleet(own_valkey: ValkeyServer) -> AsyncIterator[Fleet]:
    async with Fleet(own_valkey, count=2) as fleet:
        yield fleet


def some_writes(count: int, *, keyed: bool = True) -> list[Write]:
    """Every fifth may be run twice; each takes up to 1.5 s."""
    made = []
    for number in range(count):
        arguments: dict[str, Any] = {"hold_s": random.uniform(0.1, 1.5)}
        if number % 5:
            made.append(Write(f"append-{number}", "LEDGER.append", arguments, keyed))
        else:
            made.append(Write(f"put-{number}", "LEDGER.put", {"value": number, **arguments}, keyed))
    return made


async def write_on_both(fleet: Fleet, history: History, writes: Sequence[Write], kills: int) -> int:
    """Each write sent to both replicas at once, by callers that ask until they are told; the number of kill -9."""
    done = 0
    async with asyncio.TaskGroup() as callers:

        async def begin() -> None:
            for write in writes:
                for replicas in (fleet.replicas, fleet.replicas[::-1]):
                    callers.create_task(history.until_told(replicas, write))
                await asyncio.sleep(random.expovariate(WRITES_PER_S))

        beginning = callers.create_task(begin())
        while done < kills and not beginning.done():
            await asyncio.wait({beginning}, timeout=random.uniform(1.0, 4.0))
            victim = fleet.replicas[done % len(fleet.replicas)]
            await victim.kill()
            done += 1
            await victim.restart()
    return done


@pytest.mark.timeout(400)
@pytest.mark.fault(row=13)
async def test_replicas_that_are_killed_in_mid_call_tell_no_lie(fleet: Fleet, fault: Fault) -> None:
    writes, history = some_writes(KEYS), History()
    kills = await write_on_both(fleet, history, writes, KILLS)
    for write in writes:  # a late retry
        await history.until_told([random.choice(fleet.replicas)], write)
    await history.count_runs(fleet)
    retry_safe = frozenset(write.name for write in writes if write.method == "LEDGER.put")
    unknown = {told.name for told in history.told if told.kind == "unknown"}
    fault.figure(
        keys=len(writes), kills=kills, attempts=len(history.told), lost_connections=history.kinds()["info"],
        executions_max=max(history.runs[write.name] for write in writes if write.name not in retry_safe),
        retry_safe_executions_max=max(history.runs[name] for name in retry_safe),
        unknown=len(unknown), replays=sum(told.replayed for told in history.told),
        lies=len(lies(history, retry_safe=retry_safe)),
    )  # fmt: skip
    assert lies(history, retry_safe=retry_safe) == []
    assert kills > 1
    assert unknown
    assert max(history.runs.values()) > 1  # a retry-safe write was run again


@pytest.mark.fault(row=13, control=True)
async def test_without_keys_writes_run_twice(fleet: Fleet, fault: Fault) -> None:
    writes, history = some_writes(50, keyed=False), History()
    kills = await write_on_both(fleet, history, writes, kills=1)
    await history.count_runs(fleet)
    runs = Counter(history.runs.values())
    fault.figure(keys=len(writes), kills=kills, executions_max=max(runs), ran_more_than_once=runs.total() - runs[1])
    assert runs[1] == runs[0] == 0
    assert lies(history)


@pytest.mark.timeout(240)
@pytest.mark.fault(row=13)
async def test_an_owner_that_wakes_up_after_its_lease_tells_what_others_were_told(fleet: Fleet, fault: Fault) -> None:
    one, two = fleet.replicas
    asked, unasked = (
        Write("append-asked", arguments={"hold_s": 2.0}),
        Write("append-unasked", arguments={"hold_s": 2.0}),
    )
    again = Write("put-again", "LEDGER.put", {"value": 7, "hold_s": 2.0})
    history = History()
    paused = [asyncio.create_task(history.attempt(one, write)) for write in (asked, unasked, again)]
    for write in (asked, unasked, again):
        while not await fleet.executions(write.name):
            await asyncio.sleep(0.02)
    one.pause()
    # Both wait for the lease to expire, 30 s after it was taken: the replica beside them is as good as dead.
    elsewhere = await asyncio.gather(*(history.attempt(two, write) for write in (asked, again)))
    one.resume()
    woken = await asyncio.gather(*paused)
    late = [await history.attempt(replica, write) for replica in (one, two) for write in (asked, unasked, again)]
    await history.count_runs(fleet)

    assert [told.kind for told in elsewhere] == ["unknown", "ok"]
    assert [(told.kind, told.replayed) for told in woken] == [("unknown", True), ("ok", False), ("ok", True)]
    assert [told.kind for told in late] == ["unknown", "ok", "ok"] * 2
    assert history.runs == {"append-asked": 1, "append-unasked": 1, "put-again": 2}
    assert {told.value for told in history.told if told.name == "append-asked"} == {"unknown"}
    fault.figure(
        taken_over_s=elsewhere[1].ended - elsewhere[1].began, executions_max=1, retry_safe_executions_max=2,
        answers_differ=0,
    )  # fmt: skip


@pytest.mark.timeout(240)
@pytest.mark.fault(row=13)
async def test_an_owner_that_redis_has_cut_off_tells_what_it_did_and_has_it_told_later(
    own_valkey: ValkeyServer, fault: Fault
) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Fleet(proxy, own_valkey) as fleet,
    ):
        one, two = fleet.replicas
        write, history = Write("append", arguments={"hold_s": 36.0}), History()
        cut_off = asyncio.create_task(history.attempt(one, write))
        while not await fleet.executions(write.name):
            await asyncio.sleep(0.02)
        proxy.black_hole()
        elsewhere = await history.attempt(two, write)
        told = await cut_off
        proxy.heal()
        healed_at = time.monotonic()
        while (later := await history.attempt(two, write)).kind != "ok":
            assert later.kind == "unknown"
            await asyncio.sleep(0.05)
        await history.count_runs(fleet)
    assert elsewhere.kind == "unknown"
    assert (told.kind, told.value, later.value, later.replayed) == ("ok", 1, 1, True)
    assert history.runs == {"append": 1}
    fault.figure(told_later_after_s=time.monotonic() - healed_at, executions_max=1)


@pytest.mark.fault(row=16)
async def test_a_call_that_a_drain_interrupts_is_told_so_everywhere(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=2, environ={"LISTENERS_DRAIN_TIMEOUT_S": "8"}) as fleet:
        one, two = fleet.replicas
        brief, long = Write("append-brief", arguments={"hold_s": 1.0}), Write("append-long", arguments={"hold_s": 60.0})
        history = History()
        running = [asyncio.create_task(history.attempt(one, write)) for write in (brief, long)]
        for write in (brief, long):
            while not await fleet.executions(write.name):
                await asyncio.sleep(0.02)
        assert await one.stop() == 0
        first = await asyncio.gather(*running)
        retries = [await history.attempt(two, write) for write in (brief, long)]
        await history.count_runs(fleet)
    assert [told.kind for told in first] == ["ok", "unknown"]
    assert [(told.kind, told.replayed) for told in retries] == [("ok", True), ("unknown", True)]
    assert history.runs == {"append-brief": 1, "append-long": 1}
    fault.figure(finished=1, interrupted=1, executions_max=1)


def test_the_checker_knows_a_lie() -> None:
    def told(name: str, kind: Any, value: Any = None) -> Told:
        return Told(name, kind, value, "r1", 0.0, 1.0)

    history = History(
        [
            told("fine", "info"), told("fine", "unknown", "unknown"), told("fine", "unknown", "unknown"),
            told("again", "again", "UNAVAILABLE"), told("again", "ok", 1), told("again", "ok", 1),
            told("twice", "ok", 1),
            told("never", "ok", 1),
            told("torn", "ok", 1), told("torn", "ok", 2),
            told("taken back", "info"), told("taken back", "ok", 1), told("taken back", "unknown", "unknown"),
            told("invented", "unknown", "unknown"),
            told("broken", "fail", "INTERNAL"),
            told("put", "info"), told("put", "unknown", "unknown"),
        ],
        Counter(["fine", "again", *["twice"] * 2, "torn", "taken back", "broken", *["put"] * 2]),
    )  # fmt: skip
    assert lies(history, retry_safe=frozenset({"put"})) == [
        "twice: ran 2 times",
        "never: told ok, and never ran",
        "torn: told 1 by r1, 2 by r1",
        "taken back: told 1 by r1, 'unknown' by r1",
        "invented: told unknown, though nobody died",
        "broken: told INTERNAL",
        "put: may be run again, and was told unknown",
    ]

"""A Redis whose memory is full: it refuses to write, or it evicts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from faults.fleet import Fleet, Replica
from faults.keyed_calls import History, Write
from redis.asyncio import Redis

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.fault(row=11)]
RECORDS, RUNNING = 300, 20


@asynccontextmanager
async def administering(server: ValkeyServer) -> AsyncIterator[Any]:
    async with Redis(host=server.host, port=server.port) as client:
        yield client


async def fill(client: Any) -> None:
    """From now on it holds twice what it may."""
    await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] // 2)


async def make_room(client: Any) -> None:
    await client.config_set("maxmemory", 0)


async def metric(replica: Replica, name: str) -> float:
    text = (await replica.client.get("/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


async def test_without_memory_keyed_writes_are_refused_and_all_else_goes_on(
    own_valkey: ValkeyServer, fault: Fault
) -> None:
    history = History()
    async with Fleet(own_valkey, count=2) as fleet, administering(own_valkey) as admin:
        one, two = fleet.replicas
        done, running, later = Write("done"), Write("running", arguments={"hold_s": 3.0}), Write("later")
        assert (await history.attempt(one, done)).kind == "ok"
        in_mid_call = asyncio.create_task(history.attempt(one, running))
        while not await fleet.executions("running"):
            await asyncio.sleep(0.01)
        await fill(admin)
        refused = [await history.attempt(replica, later) for replica in (one, two) for _ in range(10)]
        assert {told.value for told in refused} == {"UNAVAILABLE"}
        assert await fleet.executions("later") == 0
        assert (await one.call("LEDGER.read", "done"))["ok"]
        assert (await two.call("LEDGER.append", "no key"))["data"] == 1
        assert (await history.attempt(two, done)).replayed  # a replay needs no memory
        assert (await in_mid_call).kind == "ok"  # it is done, and said so; Redis hears of it later
        assert (await history.attempt(two, running)).kind == "again"

        await make_room(admin)
        room_at = time.monotonic()
        told = await history.until_told([two, one], later)
        recovery_s = time.monotonic() - room_at
        assert (told.kind, told.value) == ("ok", 1)
        while (stored := await history.attempt(two, running)).kind != "ok":
            assert stored.kind in ("again", "unknown")  # for its lease expired meanwhile
        assert (stored.value, stored.replayed) == (1, True)
        await history.count_runs(fleet)
    assert set(history.runs.values()) == {1}
    fault.figure(refused=len(refused), executions_max=1, recovery_s=recovery_s)


@pytest.mark.fault(row=11, control=True)
async def test_without_a_key_a_full_redis_refuses_nothing_and_protects_nothing(
    own_valkey: ValkeyServer, fault: Fault
) -> None:
    history = History()
    async with Fleet(own_valkey, count=2) as fleet, administering(own_valkey) as admin:
        await fill(admin)
        write = Write("unprotected", keyed=False)
        assert [(await history.attempt(replica, write)).value for replica in fleet.replicas] == [1, 2]
        await history.count_runs(fleet)
    fault.figure(executions_max=max(history.runs.values()))
    assert history.runs == {"unprotected": 2}


@pytest.mark.timeout(240)
@pytest.mark.fault(row=11, control="within")
async def test_eviction_takes_finished_records_and_no_lease_of_a_running_call(
    own_valkey: ValkeyServer, fault: Fault
) -> None:
    """The control is within: locks with a Redis TTL, as they are commonly made, are evicted beside our leases."""
    history = History()
    finished = [Write(f"finished-{number}") for number in range(RECORDS)]
    running = [Write(f"running-{number}", arguments={"hold_s": 45.0}) for number in range(RUNNING)]
    async with Fleet(own_valkey, count=2) as fleet, administering(own_valkey) as admin:
        one, two = fleet.replicas
        firsts = [asyncio.create_task(history.attempt(one, write)) for write in running]
        for write in running:
            while not await fleet.executions(write.name):
                await asyncio.sleep(0.01)
            await admin.set(f"naive-lock:{write.name}", "me", nx=True, ex=600)
        for write in finished:
            assert (await history.attempt(one, write)).kind == "ok"
        records = {key async for key in admin.scan_iter(match="callboard:idem:*", count=1_000)}
        assert len(records) == RECORDS + RUNNING

        await admin.config_set("maxmemory-policy", "volatile-lru")
        await admin.config_set("maxmemory", (await admin.info("memory"))["used_memory"] + 200_000)
        number = 0
        while sum([await admin.exists(key) for key in records]) > RUNNING + RECORDS // 3:
            await admin.set(f"other:{number}", "x" * 2_000, ex=600)
            number += 1
        await make_room(admin)
        evicted = len(records) - sum([await admin.exists(key) for key in records])
        naive_left = sum([await admin.exists(f"naive-lock:{write.name}") for write in running])

        # The running calls are as protected as before: who asks elsewhere waits, and gets their answer.
        seconds = [asyncio.create_task(history.attempt(two, write)) for write in running]
        answers = await asyncio.gather(*firsts, *seconds)
        assert [(told.kind, told.value) for told in answers] == [("ok", 1)] * 2 * RUNNING
        while not await metric(two, "callboard_redis_evicted_keys") >= evicted:
            await asyncio.sleep(0.1)
        alarm = await metric(two, "callboard_redis_evicted_keys")

        before = {write.name: await fleet.executions(write.name) for write in finished}
        again = [await history.attempt(two, write) for write in finished]
        await history.count_runs(fleet)
    assert set(before.values()) == {1}
    assert {history.runs[write.name] for write in running} == {1}
    ran_again = sum(history.runs[write.name] == 2 for write in finished)
    # The limit of the promise: what was evicted is run again, and nothing else is.
    assert ran_again == sum(not told.replayed for told in again) == evicted
    assert max(history.runs.values()) == 2
    assert naive_left < RUNNING  # the control
    fault.figure(
        finished=RECORDS, evicted=evicted, ran_again=ran_again, executions_max=2, metric=alarm,
        leases=RUNNING, leases_evicted=0, executions_max_of_running=1, naive_locks_evicted=RUNNING - naive_left,
    )  # fmt: skip

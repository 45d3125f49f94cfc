"""A replica is told to stop while it has much to do; and, for comparison, killed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from faults.crowd import Stalled
from faults.fleet import Fleet, Replica
from faults.leftovers import claimed, held_by, left, sessions
from faults.page import Page
from faults.screens import Screens

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

SOCKETS = 500
BUDGET_S = 15
TTL_S = 6
ENVIRON = {
    "LISTENERS_DRAIN_TIMEOUT_S": str(BUDGET_S),
    "LISTENERS_TTL_SECONDS": str(TTL_S),
    "LISTENERS_HEARTBEAT_INTERVAL": "2",
}


async def until(condition: Callable[[], Awaitable[object]], within_s: float = 60) -> float:
    """Wait until it holds; how many seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.1)
    return time.monotonic() - began


def outcome(reply: dict[str, Any]) -> Any:
    """The data, or the error's code with what is known of the outcome."""
    if reply["ok"]:
        return reply["data"]
    error = reply["error"]
    return error["code"], (error.get("details") or {}).get("outcome")


@pytest.mark.fault(row=16)
async def test_a_replica_that_is_told_to_stop_leaves_nothing_undone(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=2, environ=ENVIRON) as fleet:
        one, two = fleet.replicas
        where = [one]
        async with (
            Screens(SOCKETS, lambda: where[-1].ws_url) as screens,
            Stalled(one.ws_url, "stalled") as stalled,
        ):
            await stalled.fill(own_valkey)
            calls = {
                name: asyncio.create_task(call)
                for name, call in {
                    "short": one.call("LEDGER.append", "short", hold_s=2, user="ann", key="short"),
                    "long": one.call("LEDGER.append", "long", hold_s=30, user="ann", key="long"),
                    "plain": one.call("LEDGER.append", "plain", hold_s=2),
                    "reading": one.call("LEDGER.wait", 30),
                    "thread": one.call("LEDGER.block_write", "thread", 3_600, user="ann", key="thread"),
                    "endless": one.call("LEDGER.block", 3_600),
                }.items()
            }
            for name in ("short", "long", "plain", "thread"):
                await until(lambda name=name: fleet.executions(name))  # type: ignore[misc]

            told_at = time.monotonic()
            exit_status = asyncio.create_task(one.stop(BUDGET_S + 20))
            unready_s = await until(lambda: unready(one))
            where.append(two)
            assert await exit_status == 0
            exit_s = time.monotonic() - told_at
            answers = {name: outcome(await call) for name, call in calls.items()}
            await screens.until(lambda page: page.is_connected and page.connects == 2)
            leaked = [*await held_by(own_valkey, "r1"), *await claimed(own_valkey)]
            told = [page.closed_at - told_at for page in screens.pages]
            online = await sessions(own_valkey)
            again = {}
            again["short"] = outcome(await two.call("LEDGER.append", "short", hold_s=2, user="ann", key="short"))
            again["long"] = outcome(await two.call("LEDGER.append", "long", hold_s=30, user="ann", key="long"))
            again["thread"] = outcome(await two.call("LEDGER.block_write", "thread", 3_600, user="ann", key="thread"))
            executions = {name: await fleet.executions(name) for name in ("short", "long", "plain", "thread")}
            closed = {code for page in screens.pages for code in page.closed}
        await until(lambda: nobody(own_valkey))
        assert await two.stop() == 0
        remains = await left(own_valkey)

    fault.figure(
        exit_s=exit_s, budget_s=BUDGET_S, unready_s=unready_s, told_within_s=max(told), spread_s=max(told) - min(told),
        leaked=len(leaked) + len(remains), executions_max=max(executions.values()),
    )  # fmt: skip
    assert (leaked, remains) == ([], [])
    assert exit_s <= BUDGET_S + 2  # of the test's own delays; a replica that exceeds its budget exits with 1
    unknown = ("ABORTED", "unknown")
    assert (answers["short"], answers["plain"]) == (1, 1)
    assert {answers["long"], answers["thread"]} == {unknown}
    assert {answers[name][0] for name in ("reading", "endless")} <= {"CANCELLED", "ABORTED", "UNAVAILABLE"}
    assert again == {"short": 1, "long": unknown, "thread": unknown}
    assert set(executions.values()) == {1}
    assert closed == {3001}
    assert screens.breaches == []
    assert online == dict.fromkeys(screens.users, 1)  # each elsewhere, nobody twice, the stalled one gone


async def unready(replica: Replica) -> bool:
    return not await replica.is_ready()


async def nobody(valkey: ValkeyServer) -> bool:
    """Whether all have left, and the sweep has seen it."""
    return not await sessions(valkey) and not any("{online}" in key for key in await left(valkey))


@pytest.mark.fault(row=16, control=True)
async def test_a_replica_that_is_killed_leaves_sessions_and_leases(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=1, environ=ENVIRON) as fleet:
        (one,) = fleet.replicas
        async with Screens(SOCKETS, lambda: one.ws_url):
            call = asyncio.create_task(one.call("LEDGER.append", "long", hold_s=30, user="ann", key="long"))
            await until(lambda: fleet.executions("long"))
            await until(lambda: holds_all(own_valkey))
            killed_at = time.monotonic()
            await one.kill()
            with pytest.raises(Exception):  # noqa: B017 - whichever way the connection ended
                await call
            remaining, held = await sessions(own_valkey), await held_by(own_valkey, "r1")
        running = await claimed(own_valkey)
        assert (len(remaining), len(held), len(running)) == (SOCKETS, SOCKETS + 1, 1)
        two = await fleet.start_one()
        await until(lambda: nobody(own_valkey))
        offline_after_s = time.monotonic() - killed_at
        unknown = outcome(await two.call("LEDGER.append", "long", hold_s=30, user="ann", key="long", timeout_ms=60_000))
        assert unknown == ("ABORTED", "unknown")
    fault.figure(
        sessions=len(remaining),
        leaked=len(remaining) + len(held) + len(running),
        offline_after_s=offline_after_s,
        ttl_s=TTL_S,
    )


async def holds_all(valkey: ValkeyServer) -> bool:
    """A lease for each socket's user, and the replica's own entry."""
    return len(await held_by(valkey, "r1")) == SOCKETS + 1


@pytest.mark.fault(row=16)
async def test_a_second_interrupt_does_not_wait_for_calls(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=1, environ=ENVIRON) as fleet:
        (one,) = fleet.replicas
        async with Page("ann", lambda: one.ws_url) as page:
            await page.until(lambda page: page.number == 0)
            call = asyncio.create_task(one.call("LEDGER.append", "long", hold_s=30, user="ann", key="long"))
            await until(lambda: fleet.executions("long"))
            began = time.monotonic()
            for _ in range(3):
                one.signal(signal.SIGINT)
                await until(lambda: unready(one))
            assert outcome(await call) == ("ABORTED", "unknown")
            assert await one.stop() == 0
            fault.figure(exit_s=time.monotonic() - began)
        assert await left(own_valkey) == []
        assert await held_by(own_valkey, "r1") == []
        log = one.log.read_text()
        assert "Traceback" not in log
        assert "KeyboardInterrupt" not in log

"""One run: nginx before three replicas, each behind a network of its own, under load, while things break."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.fleet import Fleet
from faults.nginx import Nginx
from faults.soak import history as histories
from faults.soak.checker import check
from faults.soak.history import Entry, History, Left, Online, Owned, Quiet, Ran, Stopped
from faults.soak.load import Load
from faults.soak.nemesis import Nemesis
from faults.soak.remains import is_settled, remains
from faults.soak.samples import sample
from faults.soak.verdict import Violation
from redis.asyncio import Redis

from callboard_local import FaultProxy, ValkeyServer

REPLICAS = 3
QUIET_WITHIN_S = 90.0
# What may be outstanding: a session's end; the lease of a call whose replica died, and the sweep after it.
SETTLED_WITHIN_S = 150.0
ENVIRON = {"LISTENERS_TTL_SECONDS": "30", "LISTENERS_HEARTBEAT_INTERVAL": "10"}


@dataclass(frozen=True)
class Plan:
    """`only`: the faults to choose from, by name; all of them when empty. `length` scales how long they last.

    `keyed=False` is a control: clients who retry without idempotency keys. `slow` is the share of calls that take long.
    """

    seed: int
    seconds: float
    folder: Path
    rest_s: tuple[float, float] = (10.0, 45.0)
    length: float = 1.0
    only: tuple[str, ...] = ()
    callers: int = 10
    slow: float = 0.25
    keyed: bool = True


@dataclass(frozen=True)
class Outcome:
    records: list[Entry]
    violations: list[Violation]


async def soak(plan: Plan, report: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run it, and check its history: `history.jsonl` in the plan's folder, beside the replicas' logs."""
    path = plan.folder / "history.jsonl"
    with History(path) as history:
        await _Run(plan, history, report).run()
    with path.open("rb") as lines:
        records = list(histories.read(lines))
    return Outcome(records, check(records))


class _Run:
    def __init__(self, plan: Plan, history: History, report: Callable[[str], None]) -> None:
        self._plan = plan
        self._history = history
        self._tell = report

    def _report(self, what: str) -> None:
        self._tell(f"{self._history.now():7.1f} s  {what}")

    async def run(self) -> None:
        plan, history = self._plan, self._history
        async with contextlib.AsyncExitStack() as stack:
            redis = await stack.enter_async_context(ValkeyServer())
            proxies = [await stack.enter_async_context(FaultProxy(redis.host, redis.port)) for _ in range(REPLICAS)]
            fleet = await stack.enter_async_context(Fleet(*proxies, environ=ENVIRON))
            stack.callback(_keep_logs, fleet, plan.folder)
            nginx = await stack.enter_async_context(Nginx([replica.port for replica in fleet.replicas]))
            await stack.enter_async_context(_meanwhile(sample(fleet, proxies, history)))
            load = Load(
                fleet, history, nginx.url, nginx.ws_url, random.Random(plan.seed),
                callers=plan.callers, slow=plan.slow, keyed=plan.keyed,
            )  # fmt: skip
            await stack.enter_async_context(load)
            nemesis = Nemesis(
                fleet, redis, proxies, load, history, random.Random(plan.seed), length=plan.length,
                rest_s=plan.rest_s, only=plan.only, report=self._tell,
            )  # fmt: skip
            self._report("ready")
            await nemesis.run(asyncio.get_running_loop().time() + plan.seconds)
            await self._come_to_rest(fleet, load)
            await self._empty(fleet, load, redis)
            await self._read_truth(fleet, load)

    async def _come_to_rest(self, fleet: Fleet, load: Load) -> None:
        self._report("no more faults, no more calls")
        await load.stop()
        numbers = {user: await fleet.number(user) for user in load.users}

        async def all_right() -> bool:
            return all(screen.is_connected and screen.number == numbers[screen.uid] for screen in load.screens)

        await _eventually(all_right, QUIET_WITHIN_S)
        self._history.add(Quiet(t=self._history.now(), numbers=numbers))

        async def settled() -> bool:
            owned_once = all(len(replicas) == 1 for replicas in (await _owners(fleet, load)).values())
            return owned_once and set(await _online(fleet)) == {screen.uid for screen in load.screens}

        await _eventually(settled, QUIET_WITHIN_S)
        expected = sorted({screen.uid for screen in load.screens})
        self._history.add(Online(t=self._history.now(), expected=expected, users=await _online(fleet)))
        for user, replicas in (await _owners(fleet, load)).items():
            self._history.add(Owned(t=self._history.now(), user=user, replicas=replicas))

    async def _empty(self, fleet: Fleet, load: Load, redis: ValkeyServer) -> None:
        self._report("all users leave")
        await load.leave()
        async with Redis.from_url(redis.url, decode_responses=True) as client:
            await _eventually(lambda: is_settled(client), SETTLED_WITHIN_S)
            self._report("the replicas stop")
            statuses = await asyncio.gather(*(replica.stop() for replica in fleet.replicas))
            for replica, status in zip(fleet.replicas, statuses, strict=True):
                self._history.add(Stopped(t=self._history.now(), replica=replica.name, status=status))
            async for key, why in remains(client):
                self._history.add(Left(t=self._history.now(), key=key, why=why))

    async def _read_truth(self, fleet: Fleet, load: Load) -> None:
        for op in load.ops:
            runs, value = await fleet.executions(op), await fleet.truth.get(f"value:{op}")
            self._history.add(Ran(t=self._history.now(), op=op, runs=runs, value=None if value is None else int(value)))


async def _online(fleet: Fleet) -> list[str]:
    users: list[str] = (await fleet.replicas[0].call("REGISTRY.online_users", limit=1_000))["data"]["users"]
    return users


async def _owners(fleet: Fleet, load: Load) -> dict[str, list[str]]:
    """By user with a screen: the replicas that run their listener."""
    found: dict[str, list[str]] = {screen.uid: [] for screen in load.screens}
    for replica in fleet.replicas:
        for row in (await replica.client.get("/debug")).json()["listeners"]:
            if row["uid"] in found:
                found[row["uid"]].append(replica.name)
    return found


async def _eventually(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    """Wait for it, in vain perhaps: what is then the case goes into the history, and the checker judges it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not await condition():
                await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` runs for the length of the block; what it dies of is raised at its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def _keep_logs(fleet: Fleet, folder: Path) -> None:
    for replica in fleet.replicas:
        if replica.log.exists():
            shutil.copy(replica.log, folder / replica.log.name)

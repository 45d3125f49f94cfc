"""Row 27: the service token is replaced by rolling restarts, as docs/security.md says, and nobody notices."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from faults.doors import outcome_of, showing
from faults.fleet import TOKEN, Fleet, Replica

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

OLD, NEW = TOKEN, "another-token"
STEPS = [
    {"LISTENERS_SERVICE_TOKEN": OLD, "LISTENERS_SERVICE_TOKENS": f"service:{NEW}"},
    {"LISTENERS_SERVICE_TOKEN": NEW, "LISTENERS_SERVICE_TOKENS": f"service:{OLD}"},
    {"LISTENERS_SERVICE_TOKEN": NEW},
]


@dataclass
class BackEnd:
    """Calls without a pause, on whichever replica takes work, as behind a load balancer, with the token it knows."""

    replicas: list[Replica]
    token: str = OLD
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)

    async def post(self, call: dict[str, Any], on: Replica | None = None) -> httpx.Response:
        """The answer of the first replica that is not on its way out."""
        while True:
            for replica in [on] if on else list(self.replicas):
                try:
                    answer = await replica.client.post(
                        "/rpc", json=call, headers={"Authorization": f"Bearer {self.token}"}
                    )
                except httpx.TransportError:
                    continue
                self.statuses[answer.status_code] += 1
                if answer.status_code != 503:
                    return answer
            await asyncio.sleep(0.01)

    async def keyed(self, name: str, on: Replica | None = None) -> httpx.Response:
        call = {"method": "LEDGER.append", "args": [name], "user_id": "ann", "idempotency_key": f"key of {name}"}
        return await self.post(call, on)

    async def ticket(self, on: Replica) -> str:
        answer = await self.post({"method": "REGISTRY.issue_ticket", "args": ["ann"]}, on)
        return str(answer.json()["data"]["ticket"])

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._call())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _call(self) -> None:
        for number in itertools.count():
            reply = (await self.keyed(f"call {number}")).json()
            if reply.get("data") != 1:
                self.wrong.append(reply)
            await asyncio.sleep(0.01)


async def opens(ticket: str, replica: Replica) -> bool:
    """Whether it is good there. It is shown for the wrong user, and so is spent: FORBIDDEN says that it was good."""
    code, _, _ = await outcome_of(f"{replica.ws_url}?uid=bob", showing(ticket))
    assert code in (3500, 3507)
    return code == 3507


@pytest.mark.fault(row=27)
@pytest.mark.timeout(240)
async def test_a_token_is_replaced_by_rolling_restarts(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=2) as fleet:
        back_end = BackEnd(list(fleet.replicas))
        assert (await back_end.keyed("before")).json()["data"] == 1
        tickets = replays = 0
        async with back_end.calling():
            for step in STEPS:
                for old in list(back_end.replicas):  # one by one: for a while both kinds serve
                    new = await fleet.start_one(**step)
                    for issuer, taker in itertools.permutations((*back_end.replicas, new), 2):
                        assert await opens(await back_end.ticket(issuer), taker)
                        tickets += 1
                    for replica in (*back_end.replicas, new):
                        replayed = await back_end.keyed("before", replica)
                        assert replayed.headers["Idempotent-Replayed"] == "true"
                        assert replayed.json()["data"] == 1
                        replays += 1
                    back_end.replicas.append(new)
                    back_end.replicas.remove(old)
                    assert await old.stop() == 0
                back_end.token = NEW  # after the first step; every replica knows it then
        refused = back_end.statuses[401] + back_end.statuses[403]
        fault.figure(
            calls=back_end.statuses[200], refused=refused, wrong=len(back_end.wrong), replays=replays,
            tickets=tickets, executions=await fleet.executions("before"),
        )  # fmt: skip
        assert (refused, back_end.wrong) == (0, [])
        assert await fleet.executions("before") == 1
        assert back_end.statuses[200] > 50
        (late, _) = back_end.replicas
        answer = await late.client.post(
            "/rpc", json={"method": "LEDGER.whoami"}, headers={"Authorization": f"Bearer {OLD}"}
        )
        assert answer.status_code == 403  # and the old one is good no more


@pytest.mark.fault(row=27, control=True)
async def test_replaced_at_once_calls_and_tickets_are_refused(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=1) as fleet:
        (old,) = fleet.replicas
        back_end = BackEnd([old])
        await back_end.keyed("before")
        new = await fleet.start_one(**STEPS[-1])
        refused = [(await back_end.keyed("before", new)).status_code for _ in range(5)].count(403)
        lost = [await opens(await back_end.ticket(old), new) for _ in range(5)].count(False)
        renamed = await fleet.start_one(LISTENERS_SERVICE_TOKENS=f"other:{NEW}")
        back_end.token = NEW  # of a credential with another name: the retry is another's call
        again = await back_end.keyed("before", renamed)
        fault.figure(refused=refused, tickets_lost=lost, executions=await fleet.executions("before"))
        assert (refused, lost) == (5, 5)
        assert "Idempotent-Replayed" not in again.headers
        assert await fleet.executions("before") == 2

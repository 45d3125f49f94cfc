"""Redis as users have it: what Serverless refuses and cuts, certificates that are no good, no more clients."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.fleet import Fleet, Replica
from faults.keyed_load import KeyedLoad, until_told
from faults.page import Page
from redis import exceptions as redis
from redis.asyncio import Redis

from callboard_local import Authority, Deployment, ValkeyServer, deployed
from callboard_local.deployment import DEBIANS, Kind
from callboard_local.fault_figures import Fault
from callboard_local.server import free_port

pytestmark = pytest.mark.anyio

MOST_CONNECTIONS = 117
"""A replica's to one server: two pools of 50, 8 more to each for what is urgent, and the subscription."""


def commands_run(deployment: Deployment) -> int:
    stats = "".join(deployment.ask("INFO", "stats"))
    return sum(map(int, re.findall(r"total_commands_processed:(\d+)", stats)))


# -- row 8: commands that are refused ----------------------------------------------------------------------------------


@pytest.mark.fault(row=8)
@pytest.mark.parametrize("kind", ["serverless", "acl", "cluster"])
async def test_a_service_asks_for_nothing_that_is_refused(fault: Fault, kind: Kind) -> None:
    with deployed(kind) as deployment:
        before = commands_run(deployment)
        async with Fleet(deployment, count=2, environ=deployment.environ) as fleet:
            one, two = fleet.replicas
            async with Page("ann", lambda: one.ws_url) as page, Page("ann", lambda: two.ws_url) as other:
                for each in (page, other):
                    await each.until(lambda page: page.number == 0)
                for replica in (one, two):
                    assert (await replica.call("LEDGER.append", "a", user="ann", key="k"))["data"] == 1
                    assert (await replica.call("LEDGER.put", "b", 7, user="ann", key="p"))["ok"]
                await fleet.grow("ann")
                for each in (page, other):
                    await each.until(lambda page: page.number == 1)
                    await until_told(fleet, each, itertools.count(1))
                assert (await one.call("REGISTRY.register_user", "bob", "tab"))["ok"]
                assert (await two.call("REGISTRY.heartbeat", "tab"))["ok"]
                assert (await two.call("REGISTRY.get_user", "bob"))["data"]["status"] == "online"
                assert "ann" in (await two.call("REGISTRY.online_users"))["data"]["users"]
                assert (await one.call("REGISTRY.issue_ticket", "ann"))["ok"]
                assert (await one.call("REGISTRY.sync", "ann"))["ok"]
                assert (await two.call("REGISTRY.unregister_session", "tab"))["ok"]
                assert page.breaches == other.breaches == []
            assert [await each.stop() for each in fleet.replicas] == [0, 0]
            refused = deployment.refusals()
            fault.figure(kind=kind, refused=refused.total(), commands=commands_run(deployment) - before)
            assert refused == {}
            assert await fleet.executions("a") == 1


@pytest.mark.fault(row=8, control=True)
async def test_a_stock_client_is_refused(fault: Fault) -> None:
    with deployed("serverless") as deployment:
        stock: Any = Redis(host=deployment.host, port=deployment.port)
        async with stock as client:
            assert await client.ping()  # and introduces itself by CLIENT SETINFO, unasked
            pubsub = client.pubsub()
            await pubsub.psubscribe("user:*")
            with pytest.raises(redis.NoPermissionError):
                await pubsub.get_message(timeout=5)
            await pubsub.aclose()
            pipe = client.pipeline()
            with pytest.raises(redis.ResponseError):
                await pipe.set("a", 1).set("b", 1).execute()
        refused = deployment.refusals()
        fault.figure(**refused)
        assert refused["NOPERM"] >= 2
        assert refused["CROSSSLOT"] >= 1


# -- row 8: connections that are cut -----------------------------------------------------------------------------------


@pytest.mark.fault(row=8)
async def test_connections_that_are_cut_at_random_cost_no_call_and_no_event(fault: Fault) -> None:
    with deployed("serverless") as deployment:
        async with (
            Fleet(deployment, count=2, environ=deployment.environ) as fleet,
            Page("ann", lambda: fleet.replicas[0].ws_url) as one,
            Page("ann", lambda: fleet.replicas[1].ws_url) as two,
        ):
            for page in (one, two):
                await page.until(lambda page: page.number == 0)
            cut = 0
            async with KeyedLoad(fleet) as load:
                while cut < 100 or len(load.names) < 200:
                    clients = re.findall(
                        r"^id=(\d+) .* user=default ", deployment.ask("CLIENT", "LIST")[0], re.MULTILINE
                    )
                    if clients:
                        deployment.ask("CLIENT", "KILL", "ID", random.choice(clients))
                        cut += 1
                    if cut % 5 == 0:
                        await fleet.grow("ann")
                    await asyncio.sleep(0.05)
            number = await fleet.grow("ann")
            for page in (one, two):
                await page.until(lambda page: page.number == number)
            executions = await load.executions()
            fault.figure(
                cut=cut, calls=len(load.names), refused=load.refused, executed_twice=len(load.names) - executions[1],
                breaches=len(one.breaches + two.breaches), sockets_closed=len(one.closed + two.closed),
            )  # fmt: skip
            assert one.breaches == two.breaches == []
            assert load.outcomes.keys() == {"ok"}
            assert executions.keys() == {1}


@pytest.mark.fault(row=8, control=True)
async def test_a_stock_subscription_that_is_cut_loses_events_and_says_nothing(
    fault: Fault, own_valkey: ValkeyServer
) -> None:
    async with Redis(host=own_valkey.host, port=own_valkey.port) as client:
        pubsub: Any = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("user:ann")
        received, errors, sent = 0, 0, 0
        until = time.monotonic() + 30
        while sent - received - errors < 5 and time.monotonic() < until:
            own_valkey.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await client.publish("user:ann", str(sent))
            sent += 1
            try:
                received += await pubsub.get_message(timeout=0.2) is not None
            except redis.ConnectionError:
                errors += 1
        await pubsub.aclose()
        fault.figure(sent=sent, received=received, errors=errors)
        assert sent - received - errors >= 5


# -- row 9: TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls_server(authority: Authority, **options: Any) -> ValkeyServer:
    """It speaks TLS alone."""
    port = free_port()
    args = ["--port", "0", *authority.valkey_args(authority.issue("server", **options), port)]
    return ValkeyServer(port, binary=DEBIANS, args=args)


@pytest.fixture
def server(authority: Authority, request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    with ValkeyServer() if request.param is None else tls_server(authority, **request.param) as started:
        yield started


async def logged(replica: Replica, reason: str) -> None:
    """Returns once its log has said so. On a busy machine a handshake may time out first: then it is started anew."""
    seen = 0
    while True:
        lines = [json.loads(line) for line in replica.log.read_text().splitlines() if '"bus_down"' in line]
        if any(reason in line["reason"] for line in lines):
            return
        if len(lines) > seen:
            seen = len(lines)
            assert "Timeout" in lines[-1]["reason"], lines[-1]
            await replica.restart()
        await asyncio.sleep(0.05)


async def shown(replica: Replica, reason: str) -> str:
    """What /debug says of Redis, once it says that."""
    while True:
        report = (await replica.client.get("/debug")).json()["redis"]
        assert report["status"] == "down", report
        if reason in report["error"]:
            return str(report["error"])
        await asyncio.sleep(0.05)


@pytest.mark.tls
@pytest.mark.fault(row=9)
@pytest.mark.parametrize(
    ("server", "tls", "trusted", "reason"),
    [
        pytest.param({}, True, "another", "the certificate is not trusted", id="wrong authority"),
        pytest.param({}, True, "", "the certificate is not trusted", id="the system's authorities"),
        pytest.param({"expired": True}, True, "ours", "certificate has expired", id="expired"),
        pytest.param({"host": "DNS:other"}, True, "ours", "IP address mismatch", id="another host"),
        pytest.param({}, False, "", "does this port want TLS?", id="plain text to a TLS port"),
        pytest.param(None, True, "ours", "does this port speak TLS?", id="TLS to a plain port"),
    ],
    indirect=["server"],
)
async def test_tls_that_cannot_be_trusted_is_refused_and_named(
    fault: Fault, server: ValkeyServer, authority: Authority, tmp_path: Path, tls: bool, trusted: str, reason: str
) -> None:
    ca = {"ours": authority.certificate, "another": Authority(tmp_path, "another").certificate}.get(trusted, "")
    environ = {"LISTENERS_REDIS_TLS": str(tls).lower(), "LISTENERS_REDIS_TLS_CA": str(ca)}
    async with Fleet(server, environ=environ) as fleet:
        [replica] = fleet.replicas
        async with asyncio.timeout(80):
            await logged(replica, reason)
            told = await shown(replica, reason)
        assert server.address in told
        assert "LISTENERS_REDIS_TLS" in told
        reply = await replica.call("LEDGER.append", "a", user="ann", key="k")
        assert reply["error"]["code"] == "UNAVAILABLE"
        assert await fleet.executions("a") == 0
        assert (await replica.client.get("/readyz", params={"strict": 1})).status_code == 503
        if "speak TLS" in reason:
            ran = set(re.findall(r"cmdstat_(\w+)", server.ask("INFO", "commandstats")))
            assert not ran & {"info", "auth", "subscribe", "publish", "evalsha"}, "sent in plain text"
        assert await replica.stop() == 0
        fault.figure(named=True, downgraded=False)


@pytest.mark.tls
@pytest.mark.fault(row=9, control=True)
async def test_tls_that_can_be_trusted_or_need_not_be(fault: Fault, authority: Authority) -> None:
    with tls_server(authority) as good, tls_server(authority, expired=True) as expired:
        for server, environ in (
            (good, {"LISTENERS_REDIS_TLS_CA": str(authority.certificate)}),
            (expired, {"LISTENERS_REDIS_TLS_VERIFY": "false"}),
        ):
            async with Fleet(server, environ={"LISTENERS_REDIS_TLS": "true", **environ}) as fleet:
                [replica] = fleet.replicas
                async with asyncio.timeout(30):
                    while not await replica.is_ready(strict=True):
                        await asyncio.sleep(0.05)
                assert (await replica.call("LEDGER.append", "a", user="ann", key="k"))["data"] == 1
    fault.figure(verified="connected", not_verified="connected with an expired certificate")


# -- row 10: no more clients -------------------------------------------------------------------------------------------


@pytest.mark.fault(row=10)
async def test_redis_takes_no_more_clients(fault: Fault, own_valkey: ValkeyServer) -> None:
    async with (
        Fleet(own_valkey) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
        Redis(host=own_valkey.host, port=own_valkey.port, single_connection_client=True) as last,
    ):
        [replica] = fleet.replicas
        await page.until(lambda page: page.number == 0)
        crowd = [replica.call("LEDGER.append", f"crowd-{n}", user="ann", key=f"crowd-{n}") for n in range(300)]
        assert all(reply["ok"] for reply in await asyncio.gather(*crowd))
        connections = len(await last.client_list()) - 1

        await last.config_set("maxclients", 1)  # which is this one
        await last.client_kill_filter(_type="normal", skipme=True)
        await last.client_kill_filter(_type="pubsub")
        refused = 0
        while refused < 3:
            reply = await replica.call("LEDGER.append", "late", user="ann", key=f"late-{refused}")
            assert reply["error"]["code"] == "UNAVAILABLE"
            refused += 1
        assert (await replica.client.get("/healthz")).status_code == 200
        await fleet.grow("ann")
        assert len(await last.client_list()) == 1
        await last.config_set("maxclients", 10_000)

        healed_from = time.monotonic()
        await page.until(lambda page: page.number == 1)
        async with asyncio.timeout(30):
            while not (await replica.call("LEDGER.append", "late", user="ann", key="late-0"))["ok"]:
                await asyncio.sleep(0.05)
        healed_s = round(time.monotonic() - healed_from, 1)
        fault.figure(connections=connections, of=MOST_CONNECTIONS, refused=refused, healed_s=healed_s)
        assert await fleet.executions("late") == 1
        assert page.breaches == []
        assert connections <= MOST_CONNECTIONS


@pytest.mark.fault(row=10, control=True)
async def test_a_stock_client_fails_a_crowd_that_ours_lets_wait(fault: Fault, own_valkey: ValkeyServer) -> None:
    async with Redis(host=own_valkey.host, port=own_valkey.port) as client:
        outcomes = await asyncio.gather(*(client.incr("n") for _ in range(300)), return_exceptions=True)
        failed = sum(isinstance(outcome, redis.ConnectionError) for outcome in outcomes)
        fault.figure(failed=failed, of=len(outcomes))
        assert failed

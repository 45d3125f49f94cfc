from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import jwt
import pytest
from support import MakeSettings, Recorded

from callboard.connections import Connections
from callboard.errors import ConfigurationError, InvalidArgs, Unauthenticated, Unavailable
from callboard.gateway.tickets import Tickets
from callboard.settings import Settings
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def tickets(make_settings: MakeSettings, connections: Connections) -> Tickets:
    return Tickets(make_settings(), connections)


async def test_a_ticket_opens_one_connection(tickets: Tickets) -> None:
    ticket = tickets.issue("ada@example.org")
    assert await tickets.redeem(ticket) == "ada@example.org"
    with pytest.raises(Unauthenticated):
        await tickets.redeem(ticket)


async def test_one_connection_over_all_replicas(make_settings: MakeSettings, recorded: Recorded) -> None:
    async with (
        Connections(make_settings(), recorded.telemetry) as here,
        Connections(make_settings(), recorded.telemetry) as there,
    ):
        replicas = [Tickets(make_settings(), connections) for connections in (here, there)]
        ticket = replicas[0].issue("ada")
        outcomes = await asyncio.gather(*(each.redeem(ticket) for each in replicas * 3), return_exceptions=True)
    assert outcomes.count("ada") == 1
    assert sum(isinstance(outcome, Unauthenticated) for outcome in outcomes) == 5


async def test_a_spent_ticket_is_remembered_until_after_its_end(tickets: Tickets, connections: Connections) -> None:
    await tickets.redeem(tickets.issue("ada", ttl_s=100))
    keys = await connections.commands.keys("callboard:ticket:*")
    ttls = [await connections.commands.ttl(key) for key in keys]
    assert any(100 < ttl <= 160 for ttl in ttls)
    assert all(ttl > 0 for ttl in ttls)


def claims(**changed: Any) -> dict[str, Any]:
    good = {"aud": "callboard-ws", "sub": "ada", "jti": "j", "exp": int(time.time()) + 60}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


async def test_forged_and_stale_tickets_are_refused_alike(tickets: Tickets) -> None:
    key = tickets._keys[0]
    foreign = b"k" * 32
    forged = {
        "expired": jwt.encode(claims(exp=int(time.time()) - 1), key, "HS256"),
        "for ever": jwt.encode(claims(exp=int(time.time()) + 10**6), key, "HS256"),
        "without end": jwt.encode(claims(exp=None), key, "HS256"),
        "without id": jwt.encode(claims(jti=None), key, "HS256"),
        "without user": jwt.encode(claims(sub=None), key, "HS256"),
        "not a user": jwt.encode(claims(sub="me\n"), key, "HS256"),
        "for something else": jwt.encode(claims(aud="other"), key, "HS256"),
        "without audience": jwt.encode(claims(aud=None), key, "HS256"),
        "another key": jwt.encode(claims(), foreign, "HS256"),
        "unsigned": jwt.encode(claims(), "", "none"),
        "another algorithm": jwt.encode(claims(), key * 2, "HS512"),
        "empty": "",
        "junk": "a.b.c",
        "not ASCII": "é.é.é",
        "endless": "a" * 100_000,
        "deep": base64.urlsafe_b64encode(b"[" * 2_400).decode() + ".e30.e30",
        "tampered": jwt.encode(claims(), key, "HS256")[:-2] + "xx",
    }
    for name, ticket in forged.items():
        with pytest.raises(Unauthenticated) as caught:
            await tickets.redeem(ticket)
        assert caught.value.message == "This ticket is not valid.", name
    assert await tickets.redeem(jwt.encode(claims(jti="fine"), key, "HS256")) == "ada"


async def test_what_can_be_issued(tickets: Tickets) -> None:
    for ttl_s in (0, -1, 3_601):
        with pytest.raises(InvalidArgs):
            tickets.issue("ada", ttl_s)
    for uid in ("", "a b", "*", "x" * 129):
        with pytest.raises(InvalidArgs):
            tickets.issue(uid)
    assert await tickets.redeem(tickets.issue("ada", 3_600)) == "ada"


async def test_the_secret_is_the_services_own(make_settings: MakeSettings, connections: Connections) -> None:
    by_token = Tickets(make_settings(), connections)
    by_other_token = Tickets(make_settings(LISTENERS_SERVICE_TOKEN="other"), connections)
    by_secret = Tickets(make_settings(LISTENERS_TICKET_SECRET="s"), connections)
    with pytest.raises(Unauthenticated):
        await by_other_token.redeem(by_token.issue("ada"))
    with pytest.raises(Unauthenticated):
        await by_secret.redeem(by_token.issue("ada"))
    rotated = Tickets(make_settings(LISTENERS_TICKET_SECRET="s", LISTENERS_SERVICE_TOKEN="new"), connections)
    assert await rotated.redeem(by_secret.issue("ada")) == "ada"
    with pytest.raises(ConfigurationError):
        Tickets(Settings(), connections)


async def test_while_the_token_is_replaced_tickets_go_from_replica_to_replica(
    make_settings: MakeSettings, connections: Connections
) -> None:
    steps = [
        {"LISTENERS_SERVICE_TOKEN": "old"},
        {"LISTENERS_SERVICE_TOKEN": "old", "LISTENERS_SERVICE_TOKENS": "service:new;ci:other"},
        {"LISTENERS_SERVICE_TOKEN": "new", "LISTENERS_SERVICE_TOKENS": "ci:other;service:old"},
        {"LISTENERS_SERVICE_TOKEN": "new"},
    ]
    replicas = [Tickets(make_settings(**step), connections) for step in steps]
    for before, after in pairwise(replicas):  # at each step both are there
        assert await after.redeem(before.issue("ada")) == await before.redeem(after.issue("ada")) == "ada"
    with pytest.raises(Unauthenticated):  # negative control: without the two steps between
        await replicas[3].redeem(replicas[0].issue("ada"))


async def test_a_token_that_may_not_issue_tickets_signs_none(
    make_settings: MakeSettings, connections: Connections
) -> None:
    here = Tickets(
        make_settings(LISTENERS_SERVICE_TOKENS="service:limited:REGISTRY.get_*;ci:other;service:more:REGISTRY.*"),
        connections,
    )
    for token in ("limited", "other"):
        forger = Tickets(make_settings(LISTENERS_SERVICE_TOKEN=token), connections)
        with pytest.raises(Unauthenticated):
            await here.redeem(forger.issue("ada"))
    entitled = Tickets(make_settings(LISTENERS_SERVICE_TOKEN="more"), connections)
    assert await here.redeem(entitled.issue("ada")) == "ada"


async def test_without_redis_no_ticket_is_good(
    own_valkey: ValkeyServer, make_settings: MakeSettings, recorded: Recorded
) -> None:
    settings = make_settings(LISTENERS_REDIS_PORT=str(own_valkey.port))
    async with Connections(settings, recorded.telemetry, attempt_timeout_s=0.2, call_limit_s=0.5) as connections:
        tickets = Tickets(settings, connections)
        ticket = tickets.issue("ada")
        await own_valkey.kill()
        with pytest.raises(Unavailable):
            await tickets.redeem(ticket)
        await own_valkey.restart()
        assert await tickets.redeem(ticket) == "ada"


@asynccontextmanager
async def proxy_that_loses_replies(port: int, lose: bytes) -> AsyncIterator[int]:
    """Forwards to Valkey; the first reply to a command that contains `lose` is replaced by a reset connection."""
    losing = True
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal losing
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while command := await reader.read(65_536):
                upstream_writer.write(command)
                answer = await upstream_reader.read(65_536)
                if losing and lose in command:
                    losing = False
                    return
                writer.write(answer)
        finally:
            writer.close()
            upstream_writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert not losing


async def test_a_lost_reply_does_not_cost_the_ticket(
    valkey_server: ValkeyServer, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async with proxy_that_loses_replies(valkey_server.port, b"callboard:ticket:") as port:
        settings = make_settings(LISTENERS_REDIS_PORT=str(port))
        async with Connections(settings, recorded.telemetry) as connections:
            tickets = Tickets(settings, connections)
            ticket = tickets.issue("ada")
            assert await tickets.redeem(ticket) == "ada"
            with pytest.raises(Unauthenticated):
                await tickets.redeem(ticket)

"""Row 27 on `/ws`: no credential opens another user's events, on whichever replica. Real replicas, real sockets."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from faults.doors import ORIGIN, fleet_of, opened, outcome_of, showing, ticket_for
from faults.fleet import TOKEN, Fleet, Replica
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio


@pytest.mark.fault(row=27)
async def test_no_socket_is_opened_for_another_user(own_valkey: ValkeyServer, fault: Fault) -> None:
    """Bob's credential, and none at all, try for Ann's events while there are many of them."""
    async with fleet_of(own_valkey, 2) as fleet:
        one, two = fleet.replicas
        await one.call("REGISTRY.register_user", "bob", "bob-1", authorized_companies_ids=["acme"])
        frames: list[dict[str, Any]] = []
        codes: list[int] = []

        async def tries(
            query: str, first: str | None = None, headers: Sequence[tuple[str, str]] = ()
        ) -> tuple[int, str]:
            for replica in (one, two):
                code, reason, told = await outcome_of(f"{replica.ws_url}?{query}", first, headers)
                frames.extend(told)
                codes.append(code)
            return code, reason

        async with heard_by_ann(one, fleet) as news:
            for uid in OTHER_NAMES_OF_ANN:
                code, _ = await tries(f"uid={uid}", showing(await ticket_for(one, "bob")))
                assert code == 3501, uid
            for query in ("", "uid=", "uid=bob&uid=ann", "uid=ann&uid=bob", "UID=ann", "uid[]=ann"):
                code, _ = await tries(query, showing(await ticket_for(one, "bob")))
                assert code == 3501, query
            for _ in range(3):
                assert (await outcome_of(f"{two.ws_url}?uid=ann", showing(await ticket_for(one, "bob"))))[0] == 3507
            for space in ("other", "acme2", "ACME"):
                query = f"uid=bob&space_code={space}&thread_key=t"
                code, _, told = await outcome_of(f"{two.ws_url}?{query}", showing(await ticket_for(one, "bob")))
                assert (code, told) == (3507, [])

            said = {await tries("uid=ann", first) for first in await forged_tickets(one)}
            assert said == {(3500, "This ticket is not valid.")}  # all alike, on both replicas

            mine = await ticket_for(one, "bob")
            async with opened(one, "bob", mine):
                assert await tries("uid=bob", showing(mine)) == (3500, "This ticket is not valid.")

            for origin in (
                "https://evil.example",
                "null",
                "",
                f"{ORIGIN}.evil.example",
                f"https://evil.example/{ORIGIN}",
            ):
                headers = [("Origin", origin)]
                assert (await tries("uid=ann", showing(await ticket_for(one, "ann")), headers))[0] == 3507, origin
            both = [("Origin", ORIGIN), ("Origin", "https://evil.example")]
            assert (await tries("uid=ann", showing(await ticket_for(one, "ann")), both))[0] == 400  # the server's own
            assert (await tries("uid=ann", None, [("Authorization", "Bearer reader-token")]))[0] == 3507
            for header in ("Bearer wrong", f"Basic {TOKEN}", "Bearer", ""):
                assert (await tries("uid=ann", None, [("Authorization", header)]))[0] == 3500
            async with asyncio.timeout(30):  # there was something to leak
                while len(news) < 20:
                    await asyncio.sleep(0.01)
            fault.figure(refused=len(codes), frames=len(frames), leaks=len(frames), told_to_ann=len(news))
            assert frames == []


OTHER_NAMES_OF_ANN = [
    "*", "a*", "ann%0A", "ann%0D%0A", "ann%00", "user:ann", "user%3Aann", "ann%20", "%20ann", "[a]nn", "ann%2Cbob",
    quote("\N{CYRILLIC SMALL LETTER A}nn"), quote("ａnn"), quote("ann\u200b"), quote("ann\u202e"), "ann:acme:t",
    "{ann}", "ann/../bob", "?", "%ff", "a" * 129, "%2A", "user:*", "ann%7Cbob",
]  # fmt: skip


async def forged_tickets(replica: Replica) -> list[str]:
    """First frames with tickets for Ann that nobody issued."""
    good = await ticket_for(replica, "bob")
    claims = jwt.decode(good, options={"verify_signature": False})
    key = hmac.digest(TOKEN.encode(), b"callboard websocket tickets, 1", "sha256")  # the service's own
    now = int(time.time())
    ann = {**claims, "sub": "ann", "jti": "j" * 32}
    head, _, signature = good.split(".")
    body = base64.urlsafe_b64encode(json.dumps(ann).encode()).rstrip(b"=").decode()

    def without(claim: str) -> dict[str, Any]:
        return {name: value for name, value in ann.items() if name != claim}

    return [
        showing(ticket)
        for ticket in (
            f"{head}.{body}.{signature}",
            f"{head}.{body}.",
            jwt.encode(ann, "", "none"),
            jwt.encode(ann, b"k" * 32, "HS256"),
            jwt.encode(ann, TOKEN.encode() * 3, "HS256"),
            jwt.encode(ann, key * 2, "HS512"),
            jwt.encode({**ann, "aud": "another"}, key, "HS256"),
            jwt.encode({**ann, "exp": now - 1}, key, "HS256"),
            jwt.encode({**ann, "exp": now + 10**7}, key, "HS256"),
            jwt.encode({**ann, "exp": "soon"}, key, "HS256"),
            jwt.encode({**ann, "sub": "ann\n"}, key, "HS256"),
            jwt.encode({**ann, "nbf": now + 600}, key, "HS256"),
            *(jwt.encode(without(claim), key, "HS256") for claim in ("aud", "sub", "jti", "exp")),
            "",
            "a.b.c",
            "." * 5_000,
            TOKEN,
        )
    ]


@asynccontextmanager
async def heard_by_ann(replica: Replica, fleet: Fleet) -> AsyncIterator[list[Any]]:
    """Ann's own socket, and events for her without a pause."""
    news: list[Any] = []

    async def read(socket: ClientConnection) -> None:
        async for text in socket:
            news.append(json.loads(text))  # noqa: PERF401 - what came before the end counts

    async def tell() -> None:
        number = 0
        while True:
            number += 1
            await replica.call("LEDGER.notify", "ann", number)
            await asyncio.sleep(0.01)

    async with opened(replica, "ann", await ticket_for(replica, "ann")) as socket:
        tasks = {asyncio.create_task(read(socket)), asyncio.create_task(tell())}
        try:
            yield news
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert all(event["uid"] == "ann" for event in news)


@pytest.mark.fault(row=27)
async def test_a_ticket_opens_one_socket_on_however_many_replicas(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with fleet_of(own_valkey, 3) as fleet:
        let_in = []
        for _ in range(10):
            ticket = await ticket_for(fleet.replicas[0], "ann")
            let_in.append(sum(await asyncio.gather(*(lets_in(each, ticket) for each in fleet.replicas * 3))))
        fault.figure(
            tickets=len(let_in), tries=9 * len(let_in), let_in=sum(let_in), let_in_twice=sum(n > 1 for n in let_in)
        )
        assert let_in == [1] * 10


async def lets_in(replica: Replica, ticket: str) -> bool:
    async with connect(f"{replica.ws_url}?uid=ann", proxy=None) as socket:
        await socket.send(showing(ticket))
        try:
            return bool(await asyncio.wait_for(socket.recv(), 30))
        except ConnectionClosed:
            return False


@pytest.mark.fault(row=27, control=True)
async def test_without_the_protections_the_same_attempts_succeed(own_valkey: ValkeyServer, fault: Fault) -> None:
    """The memory of spent tickets is wiped, the key is known, the origin is listed, the pattern is `*`."""
    evil = "https://evil.example"
    open_doors = {"LISTENERS_ALLOWED_ORIGINS": evil, "LISTENERS_SERVICE_TOKENS": "reader:reader-token:*"}
    async with (
        fleet_of(own_valkey, 2, **open_doors) as fleet,
        Redis(host=own_valkey.host, port=own_valkey.port) as redis,
    ):
        one, two = fleet.replicas
        reader = {"Authorization": "Bearer reader-token"}
        ticket = await ticket_for(one, "ann")
        async with opened(one, "ann", ticket, origin=evil):
            for key in [key async for key in redis.scan_iter("callboard:ticket:*")]:
                await redis.delete(key)
            async with opened(two, "ann", ticket, origin=evil):
                pass
        key = hmac.digest(TOKEN.encode(), b"callboard websocket tickets, 1", "sha256")
        claims = {"aud": "callboard-ws", "sub": "ann", "jti": "x", "exp": int(time.time()) + 60}
        async with opened(one, "ann", jwt.encode(claims, key, "HS256"), origin=evil):
            pass
        assert (
            await one.client.post("/rpc", json={"method": "LEDGER.append", "args": ["stolen"]}, headers=reader)
        ).json()["data"] == 1
        fault.figure(replayed=1, forged=1, foreign_origins=3, leaks=await fleet.executions("stolen"))


@pytest.mark.fault(row=27)
async def test_a_session_id_is_not_taken_from_its_user(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with fleet_of(own_valkey, 2) as fleet:
        one, two = fleet.replicas

        async def sessions(uid: str) -> set[str]:
            return {each["session_id"] for each in (await two.call("REGISTRY.list_sessions", uid))["data"]}

        async with opened(one, "ann", await ticket_for(one, "ann"), "&session_id=tab-1"):
            async with opened(two, "bob", await ticket_for(one, "bob"), "&session_id=tab-1"):
                theirs = {"ann": await sessions("ann"), "bob": await sessions("bob")}
            async with asyncio.timeout(30):
                while await sessions("bob"):
                    await asyncio.sleep(0.05)
            assert await sessions("ann") == theirs["ann"] == {"tab-1"}
        assert len(theirs["bob"]) == 1
        taken = len(theirs["ann"] & theirs["bob"])
        fault.figure(taken=taken)
        assert taken == 0

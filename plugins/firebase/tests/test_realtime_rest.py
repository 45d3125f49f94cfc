"""Requests of the Realtime Database client, against a scripted server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from callboard.errors import (
    Aborted,
    CallError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgs,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from callboard_firebase import Query, RealtimeDatabase
from callboard_firebase.realtime import Address, EmulatorTokens
from callboard_firebase.realtime.errors import Refusal

from .realtime_server import QUICK, CountedTokens, Exchange, RealtimeServer, served

pytestmark = pytest.mark.anyio

INCREMENT = {".sv": {"increment": 1}}


async def echo(exchange: Exchange) -> None:
    await exchange.answer(200, {"asked": exchange.path})


def asked(server: RealtimeServer) -> list[tuple[str, str]]:
    return [(exchange.method, exchange.path) for exchange in server.exchanges]


# -- what is sent


async def test_every_method_is_the_request_that_google_documents() -> None:
    async with served(echo) as (server, database):
        assert await database.get("a/b") == {"asked": "/a/b.json"}
        await database.set("a/b", {"n": 1})
        await database.update("a", {"b/n": 2, "c": None})
        name = await database.push("a/list", "x")
        await database.delete("a/b")
        assert asked(server) == [
            ("GET", "/a/b.json"),
            ("PUT", "/a/b.json"),
            ("PATCH", "/a.json"),
            ("PUT", f"/a/list/{name}.json"),
            ("DELETE", "/a/b.json"),
        ]
        assert [exchange.json() for exchange in server.exchanges if exchange.body] == [
            {"n": 1},
            {"b/n": 2, "c": None},
            "x",
        ]
        assert [exchange.query for exchange in server.exchanges] == [
            {"ns": "demo"},
            *[{"ns": "demo", "print": "silent"}] * 4,
        ]
        assert {exchange.token for exchange in server.exchanges} == {"owner"}


async def test_a_query_is_sent_as_json() -> None:
    async with served(echo) as (server, database):
        await database.get("a", Query(order_by="x/y", start_at="b c+d", end_at=None, limit_to_last=3))
        await database.get("a", shallow=True)
        await database.get("")
        assert [exchange.query for exchange in server.exchanges] == [
            {"orderBy": '"x/y"', "startAt": '"b c+d"', "endAt": "null", "limitToLast": "3", "ns": "demo"},
            {"shallow": "true", "ns": "demo"},
            {"ns": "demo"},
        ]
        assert server.exchanges[2].path == "/.json"


async def test_keys_are_quoted() -> None:
    async with served(echo) as (server, database):
        key = "100%25 ? & é : ; @ +"
        assert await database.get(f"a/{key}") == {"asked": f"/a/{key}.json"}
        assert len(server.exchanges) == 1


async def test_an_empty_update_asks_nothing() -> None:
    async with served(echo) as (server, database):
        await database.update("a", {})
        assert server.exchanges == []


BAD_PATHS = ["a/", "/a", "a//b", "a.json", "a/$b", "a#", "a[0]", "a\n", "k" * 769, "\ud800", "/".join("a" * 33)]


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_a_path_that_cannot_be_is_not_asked(path: str) -> None:
    async with served(echo) as (server, database):
        for ask in (database.get(path), database.set(path, 1), database.delete(path), database.push(path, 1)):
            with pytest.raises(InvalidArgs):
                await ask
        with pytest.raises(InvalidArgs):
            await database.update("a", {path: 1})
        with pytest.raises(InvalidArgs):
            async with database.watch(path):
                pass
        assert server.exchanges == []


async def test_the_root_is_not_replaced() -> None:
    async with served(echo) as (server, database):
        for ask in (database.set("", 1), database.delete(""), database.update("a", {"": 1})):
            with pytest.raises(InvalidArgs):
                await ask
        assert server.exchanges == []
        await database.update("", {"a": 1})
        await database.push("", 1)


async def test_paths_of_an_update_do_not_overlap() -> None:
    async with served(echo) as (server, database):
        for values in ({"a": 1, "a/b": 2}, {"a/b/c": 1, "x": 1, "a/b": 2, "a!": 3}):
            with pytest.raises(InvalidArgs):
                await database.update("n", values)
        await database.update("n", {"a": 1, "ab": 2, "a!/b": 3})
        assert len(server.exchanges) == 1


@pytest.mark.parametrize(
    "query",
    [
        Query(order_by=""),
        Query(order_by="$other"),
        Query(limit_to_first=1, limit_to_last=1),
        Query(limit_to_first=0),
        Query(equal_to=1, start_at=1),
        Query(start_at={"a": 1}),
        Query(start_at="\ud800"),
    ],
)
async def test_a_query_that_cannot_be_is_not_asked(query: Query) -> None:
    async with served(echo) as (server, database):
        with pytest.raises(InvalidArgs):
            await database.get("a", query)
        with pytest.raises(InvalidArgs):
            await database.get("a", Query(), shallow=True)
        assert server.exchanges == []


# -- what comes back


async def test_large_answers_are_decoded_beside_the_loop() -> None:
    large = {str(number): "x" * 100 for number in range(2_000)}

    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, large)

    async with served(script) as (_, database):
        assert await database.get("a") == large


async def test_an_answer_beyond_the_limit_is_refused() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, "x" * 2_000)

    async with served(script, replace(QUICK, max_body_bytes=1_000)) as (_, database):
        with pytest.raises(FailedPrecondition):
            await database.get("a")
    async with served(script, replace(QUICK, max_body_bytes=3_000)) as (_, database):
        assert len(await database.get("a")) == 2_000


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "bad", InvalidArgs),
        (400, 'Index not defined, add ".indexOn": "x"', FailedPrecondition),
        (401, "Unauthorized request.", Unauthenticated),
        (401, "Permission denied", PermissionDenied),
        (403, "no", PermissionDenied),
        (404, "no", NotFound),
        (408, "no", DeadlineExceeded),
        (412, "no", Aborted),
        (413, "no", InvalidArgs),
        (418, "no", Internal),
        (423, "no", FailedPrecondition),
        (429, "no", ResourceExhausted),
        (500, "no", Unavailable),
        (503, "no", Unavailable),
        (504, "no", DeadlineExceeded),
    ],
)
async def test_a_refusal_is_a_call_error_without_its_text(status: int, text: str, kind: type[CallError]) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.refuse(status, text)

    async with served(script) as (server, database):
        with pytest.raises(kind) as caught:
            await database.get("a")
        assert type(caught.value) is kind
        assert text not in str(caught.value).split()
        cause = caught.value.__cause__
        assert isinstance(cause, Refusal)
        assert (cause.status, cause.text) == (status, text)
        assert len(server.exchanges) == (2 if kind is Unauthenticated else 1)


@pytest.mark.parametrize("body", [b"<html>", b"", b'"\xff"', b"[" * 100_000])
async def test_what_is_no_json_is_unavailable(body: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, body)

    async with served(script) as (_, database):
        with pytest.raises(Unavailable):
            await database.get("a")


# -- tokens


async def test_a_refused_token_is_renewed_once() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.token == "t1":
            await exchange.refuse(401, "Unauthorized request.")
        else:
            await exchange.answer(200, exchange.token)

    tokens = CountedTokens()
    async with served(script, tokens=tokens) as (server, database):
        assert await database.get("a") == "t2"
        await database.update("b", {"n": INCREMENT})
        assert [exchange.token for exchange in server.exchanges] == ["t1", "t2", "t2"]
    assert tokens.closed


async def test_rules_that_forbid_do_not_renew_the_token() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.refuse(401, "Permission denied")

    tokens = CountedTokens()
    async with served(script, tokens=tokens) as (server, database):
        with pytest.raises(PermissionDenied):
            await database.get("a")
        assert len(server.exchanges) == tokens.made == 1


# -- redirects


async def test_a_redirect_is_followed_with_method_body_and_token() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.path == "/a.json":
            await exchange.redirect("/elsewhere.json?ns=demo")
        else:
            await exchange.answer(200, None)

    async with served(script, tokens=CountedTokens()) as (server, database):
        await database.set("a", 1)
        second = server.exchanges[1]
        assert (second.method, second.path, second.json(), second.token) == ("PUT", "/elsewhere.json", 1, "t1")


async def test_a_circle_of_redirects_ends() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.redirect("/a.json")

    async with served(script) as (server, database):
        with pytest.raises(Unavailable):
            await database.get("a")
        assert len(server.exchanges) == 6


async def test_a_token_goes_to_no_other_host() -> None:
    async with served(echo) as (other, _):

        async def script(exchange: Exchange) -> None:
            await exchange.redirect(f"http://{other.address}/a.json")

        async with served(script, tokens=CountedTokens()) as (_, database):
            with pytest.raises(Unavailable):
                await database.get("a")
            assert other.exchanges == []
        # The control: an emulator's token is no secret, and the same redirect is followed.
        async with served(script) as (_, database):
            assert await database.get("a") == {"asked": "/a.json"}


# -- connections that break


async def breaks_once(exchange: Exchange) -> None:
    """The first request is lost with its connection, after it was read."""
    if exchange.number == 1:
        exchange.reset()
    else:
        await exchange.answer(200, "again")


@pytest.mark.parametrize("method", ["get", "set", "delete", "push", "update"])
async def test_what_can_be_repeated_is_asked_once_more(method: str) -> None:
    asks: dict[str, Any] = {
        "get": lambda database: database.get("a"),
        "set": lambda database: database.set("a", 1),
        "delete": lambda database: database.delete("a"),
        "push": lambda database: database.push("a", 1),
        "update": lambda database: database.update("a", {"b": 1}),
    }
    async with served(breaks_once) as (server, database):
        await asks[method](database)
        first, second = server.exchanges
        assert (first.method, first.path, first.body) == (second.method, second.path, second.body)


@pytest.mark.parametrize(
    "ask",
    [
        lambda database: database.set("a", INCREMENT),
        lambda database: database.update("a", {"b/c": {"n": INCREMENT}}),
        lambda database: database.push("a", [1, {"$op": "increment", "by": 2.5}]),
    ],
)
async def test_an_increment_is_sent_once(ask: Any) -> None:
    async with served(breaks_once) as (server, database):
        with pytest.raises(OutcomeUnknown):
            await ask(database)
        assert len(server.exchanges) == 1


async def test_a_server_that_breaks_for_ever_is_asked_twice() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.reset()

    async with served(script) as (server, database):
        with pytest.raises(Unavailable):
            await database.get("a")
        assert len(server.exchanges) == 2


async def test_a_pooled_connection_that_the_server_closed_costs_nothing() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, exchange.connection)
        exchange.hang_up()

    async with served(script) as (_, database):
        assert [await database.get("a") for _ in range(3)] == [1, 2, 3]


async def test_connections_are_used_again() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, exchange.connection)

    async with served(script) as (_, database):
        assert [await database.get("a") for _ in range(3)] == [1, 1, 1]


async def test_a_server_that_is_away_is_unavailable_even_for_an_increment() -> None:
    async with served(echo) as (server, _):
        gone = server.address
    async with RealtimeDatabase(Address(f"http://{gone}", "demo", emulated=True), EmulatorTokens(), QUICK) as database:
        for ask in (database.get("a"), database.set("a", INCREMENT)):
            with pytest.raises(Unavailable):
                await ask


async def test_a_server_that_is_mute_costs_the_request_its_time() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.silence()

    async with served(script, replace(QUICK, request_timeout_s=0.1)) as (server, database):
        with pytest.raises(DeadlineExceeded):
            await database.get("a")
        with pytest.raises(OutcomeUnknown):
            await database.set("a", INCREMENT)
        with pytest.raises(DeadlineExceeded):
            await database.check(0.05)
        assert len(server.exchanges) == 3


async def test_a_cancelled_request_leaves_its_connection() -> None:
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number > 1:
            await exchange.answer(200, 1)
            return
        await exchange.silence()
        left.set()

    async with served(script) as (server, database):
        asking = asyncio.create_task(database.get("a"))
        await server.asked(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(20):
            await left.wait()
        assert await database.get("a") == 1


async def test_a_closed_database_is_unavailable() -> None:
    async with served(echo) as (_, database):
        assert await database.check() > 0
    with pytest.raises(Unavailable):
        await database.get("a")
    with pytest.raises(Unavailable):
        async with database.watch("a"):
            pass

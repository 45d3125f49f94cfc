"""The RPC door, over real sockets. The router behind it records what reaches it."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from callboard.credentials import Credential, Credentials
from callboard.errors import CallError, InvalidArgs, Unavailable
from callboard.gateway.answers import exception_handlers
from callboard.gateway.http import rpc_routes
from callboard.gateway.loopback import LoopbackOnly
from callboard.lifecycle import Lifecycle
from callboard.messages import Call, Reply
from callboard.settings import Secret, Settings
from callboard.telemetry import Telemetry

pytestmark = pytest.mark.anyio
LIMIT = 2_000
AUTHORIZED = {"Authorization": "Bearer t0ken", "Content-Type": "application/json"}


@dataclass
class Answer:
    reply: Reply
    replayed: bool = False


@dataclass
class RecordingRouter:
    """Answers with the method's name, and remembers the calls."""

    calls: list[Call] = field(default_factory=list)
    credentials: list[Credential] = field(default_factory=list)
    traceparents: list[str | None] = field(default_factory=list)
    replayed: bool = False
    fails: Exception | None = None
    data: bytes | None = None
    in_flight: int = 0

    async def call(self, call: Call, credential: Credential, *, traceparent: str | None = None) -> Answer:
        self.calls.append(call)
        self.credentials.append(credential)
        self.traceparents.append(traceparent)
        if isinstance(self.fails, CallError):
            return Answer(Reply.failure(self.fails, call.trace_id))
        if self.fails is not None:
            raise self.fails
        data = self.data or json.dumps(call.method).encode()
        return Answer(Reply.success(data, call.trace_id), self.replayed)


@dataclass
class RecordingBus:
    published: asyncio.Queue[tuple[str, bytes]] = field(default_factory=asyncio.Queue)
    fails: bool = False

    async def publish_raw(self, channel: str, data: bytes) -> None:
        self.published.put_nowait((channel, data))
        if self.fails:
            raise Unavailable("Redis is away")


@dataclass
class Service:
    router: RecordingRouter
    bus: RecordingBus
    lifecycle: Lifecycle
    log: StringIO
    client: httpx.AsyncClient
    address: str

    async def post(self, body: Any, path: str = "/rpc", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=content, headers={**AUTHORIZED, **named})

    async def raw(self, request: bytes) -> bytes:
        """Send bytes as they are; returns the head and body of the answer."""
        host, port = self.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")
            )
            return head + await reader.readexactly(length)
        finally:
            writer.close()
            await writer.wait_closed()


async def explode(_: Request) -> Response:
    raise RuntimeError("secret text of an exception")


@pytest.fixture
async def service(serve: Callable[[ASGIApp], Awaitable[str]]) -> AsyncIterator[Service]:
    settings = Settings(service_token=Secret("t0ken"), max_body_bytes=LIMIT, max_in_flight=5)
    log = StringIO()
    telemetry = Telemetry(replica="test", stream=log)
    router, bus, lifecycle = RecordingRouter(), RecordingBus(), Lifecycle()
    lifecycle.ready()
    routes = rpc_routes(settings, Credentials(settings), router, bus, lifecycle, telemetry)  # type: ignore[arg-type]
    app = Starlette(
        routes=[*routes, Route("/explode", explode)],
        exception_handlers=exception_handlers(telemetry),
    )
    address = await serve(app)
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        yield Service(router, bus, lifecycle, log, client, address)


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert body["ok"] is False
    assert body["trace_id"]
    assert set(body) == {"ok", "error", "trace_id"}
    assert body["error"]["code"] == code
    assert "Traceback" not in response.text
    error: dict[str, Any] = body["error"]
    return error


# -- what is answered


async def test_a_call_and_its_reply(service: Service) -> None:
    response = await service.post(
        {"method": "NS.hello", "args": [1], "kwargs": {"a": 2}, "user_id": "u1", "session_id": "s1", "timeout_ms": 500,
         "idempotency_key": "k", "trace_id": "t-1", "api_version": "v1", "from_the_future": {}}
    )  # fmt: skip
    assert response.status_code == 200
    assert response.json() == {"ok": True, "data": "NS.hello", "trace_id": "t-1"}
    assert "idempotent-replayed" not in response.headers
    [call] = service.router.calls
    assert (bytes(call.args), bytes(call.kwargs)) == (b"[1]", b'{"a": 2}')
    assert (call.user_id, call.session_id, call.timeout_ms, call.idempotency_key) == ("u1", "s1", 500, "k")
    assert service.router.credentials == [Credential("service")]


async def test_what_the_router_answers_is_200_errors_included(service: Service) -> None:
    service.router.fails = InvalidArgs("no")
    response = await service.post({"method": "NS.hello"})
    assert response.status_code == 200
    assert response.json()["error"] == {"code": "INVALID_ARGS", "message": "no"}


async def test_a_replayed_answer_says_so(service: Service) -> None:
    service.router.replayed = True
    response = await service.post({"method": "NS.hello"})
    assert response.headers["idempotent-replayed"] == "true"


async def test_the_short_form_takes_kwargs_as_body_and_the_rest_as_headers(service: Service) -> None:
    response = await service.post(
        {"a": [1]}, "/rpc/NS.hello", X_User_Id="u1", X_Session_Id="s1", X_Timeout_Ms="250", Idempotency_Key="k",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )  # fmt: skip
    assert response.json() == {"ok": True, "data": "NS.hello", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    [call] = service.router.calls
    assert bytes(call.kwargs) == b'{"a": [1]}'
    assert (call.user_id, call.session_id, call.timeout_ms, call.idempotency_key) == ("u1", "s1", 250, "k")
    assert (await service.post(b"", "/rpc/NS.hello")).json()["ok"] is True


async def test_the_envelope_wins_over_the_headers(service: Service) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    both = {"method": "NS.a", "trace_id": "mine", "idempotency_key": "body"}
    assert (await service.post(both, traceparent=parent, Idempotency_Key="head")).json()["trace_id"] == "mine"
    assert service.router.calls[0].idempotency_key == "body"
    await service.post({"method": "NS.a"}, traceparent=parent, Idempotency_Key="head")
    assert service.router.calls[1].trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert service.router.calls[1].idempotency_key == "head"
    assert service.router.traceparents == [parent, parent]


async def test_every_call_gets_a_trace_id_of_its_own_when_it_has_none(service: Service) -> None:
    first, second = [(await service.post({"method": "NS.a"}, traceparent="junk")).json() for _ in range(2)]
    assert len(first["trace_id"]) == 32
    assert first["trace_id"] != second["trace_id"]
    assert service.router.traceparents == [None, None]


async def test_json_content_types(service: Service) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON;x=y"):
        assert (await service.post({"method": "NS.a"}, Content_Type=kind)).status_code == 200


async def test_a_body_of_exactly_the_limit_passes(service: Service) -> None:
    body = json.dumps({"method": "NS.a", "kwargs": {"a": ""}}).encode()
    body = body.replace(b'""', b'"' + b"x" * (LIMIT - len(body)) + b'"')
    assert len(body) == LIMIT
    assert (await service.post(body)).status_code == 200


async def test_a_body_in_pieces(service: Service) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"method": '
        yield b'"NS.a"}'

    response = await service.client.post("/rpc", content=pieces(), headers=AUTHORIZED)
    assert response.json()["data"] == "NS.a"


async def test_the_reply_goes_to_the_reply_channel_too(service: Service) -> None:
    response = await service.post({"method": "NS.a", "reply_to": "redis:reply:s1", "trace_id": "t"})
    channel, data = await service.bus.published.get()
    assert channel == "redis:reply:s1"
    assert data == response.content


async def test_a_reply_too_large_for_a_channel_is_told_as_such_there(service: Service) -> None:
    service.router.data = json.dumps("x" * 300_000).encode()
    response = await service.post({"method": "NS.a", "reply_to": "redis:reply:s1", "trace_id": "t"})
    assert response.json()["data"] == "x" * 300_000
    _, data = await service.bus.published.get()
    told = json.loads(data)
    assert (told["ok"], told["error"]["code"], told["trace_id"]) == (False, "FAILED_PRECONDITION", "t")
    assert "retry_after_ms" not in told["error"]
    assert len(data) < 1_000


async def test_a_reply_channel_out_of_order_never_changes_the_answer(service: Service) -> None:
    service.bus.fails = True
    response = await service.post({"method": "NS.a", "reply_to": "redis:reply:s1"})
    assert response.json()["ok"] is True
    await service.bus.published.get()
    assert (await service.post({"method": "NS.b"})).status_code == 200
    assert '"code":"UNAVAILABLE"' in service.log.getvalue()


# -- what is refused


NOT_CALLS = {
    "empty": b"",
    "unclosed": b'{"method":"NS.a","kwargs":{"a":' + b"[" * 900,
    "not JSON": b"hello",
    "list": b"[]",
    "null": b"null",
    "no method": b"{}",
    "method is a number": b'{"method": 1}',
    "args is an object": b'{"method":"NS.a","args":{}}',
    "kwargs is a list": b'{"method":"NS.a","kwargs":[]}',
    "timeout is text": b'{"method":"NS.a","timeout_ms":"5"}',
    "timeout is a bool": b'{"method":"NS.a","timeout_ms":true}',
    "timeout is zero": b'{"method":"NS.a","timeout_ms":0}',
    "user id": b'{"method":"NS.a","user_id":"a b"}',
    "user id with newline": b'{"method":"NS.a","user_id":"me\\n"}',
    "session id": b'{"method":"NS.a","session_id":"*"}',
    "trace id": b'{"method":"NS.a","trace_id":""}',
    "key too long": b'{"method":"NS.a","idempotency_key":"%s"}' % (b"k" * 256),
    "reply_to elsewhere": b'{"method":"NS.a","reply_to":"user:u1"}',
    "reply_to nobody": b'{"method":"NS.a","reply_to":"redis:reply:"}',
    "api version": b'{"method":"NS.a","api_version":"v2"}',
    "NaN": b'{"method":"NS.a","kwargs":{"a":NaN}}',
    "Infinity": b'{"method":"NS.a","args":[Infinity]}',
    "duplicate key": b'{"method":"NS.a","kwargs":{"a":1,"a":2}}',
    "duplicate method": b'{"method":"NS.a","method":"NS.b"}',
    "invalid UTF-8": b'{"method":"NS.\xff"}',
    "invalid UTF-8 in args": b'{"method":"NS.a","args":["\xff"]}',
    "lone surrogate": b'{"method":"NS.a","args":["\\ud800"]}',
    "UTF-16": '{"method":"NS.a"}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"method":"NS.a"}',
    "trailing text": b'{"method":"NS.a"} x',
    "NUL": b'{"method":"NS.a"}\x00',
}


async def test_a_body_that_is_not_a_call_is_400(service: Service) -> None:
    for name, body in NOT_CALLS.items():
        refused(await service.post(body), 400, "INVALID_ARGS")
        assert service.router.calls == [], name


async def test_deep_nesting_is_400(serve: Callable[[ASGIApp], Awaitable[str]]) -> None:
    settings = Settings(service_token=Secret("t0ken"))
    router, lifecycle, telemetry = RecordingRouter(), Lifecycle(), Telemetry(replica="test", stream=StringIO())
    lifecycle.ready()
    parts: Any = (settings, Credentials(settings), router, RecordingBus(), lifecycle, telemetry)
    address = await serve(Starlette(routes=rpc_routes(*parts)))
    body = b'{"method":"NS.a","kwargs":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        refused(await client.post("/rpc", content=body, headers=AUTHORIZED), 400, "INVALID_ARGS")
        short = b'{"a":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
        refused(await client.post("/rpc/NS.a", content=short, headers=AUTHORIZED), 400, "INVALID_ARGS")
    assert router.calls == []


async def test_the_short_form_refuses_the_same(service: Service) -> None:
    for body in (b"[]", b"1", b"{", b'{"a":NaN}', b'{"a":1,"a":1}', b'"\xff"', b'{"a":"\\ud800"}'):
        refused(await service.post(body, "/rpc/NS.a"), 400, "INVALID_ARGS")
    for headers in ({"X_Timeout_Ms": "-1"}, {"X_Timeout_Ms": "x"}, {"X_Timeout_Ms": "0"}, {"X_User_Id": "a b"}):
        refused(await service.post({}, "/rpc/NS.a", **headers), 400, "INVALID_ARGS")
    assert service.router.calls == []


async def test_a_refused_envelope_keeps_its_trace_id(service: Service) -> None:
    response = await service.post({"method": "NS.a", "trace_id": "mine", "user_id": "a b"})
    assert response.json()["trace_id"] == "mine"


async def test_too_large_by_its_length(service: Service) -> None:
    refused(await service.post(b"x" * (LIMIT + 1)), 413, "INVALID_ARGS")
    assert service.router.calls == []


async def test_too_large_without_a_length(service: Service) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 1_000

    response = await service.client.post("/rpc", content=endless(), headers=AUTHORIZED)
    refused(response, 413, "INVALID_ARGS")


async def test_too_large_is_answered_before_the_body_is_sent(service: Service) -> None:
    head = b"POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer t0ken\r\n"
    answer = await service.raw(head + b"content-length: 200000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    answer = await service.raw(head + b"transfer-encoding: chunked\r\n\r\n1000\r\n" + b"x" * 0x1000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert service.router.calls == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [(AUTHORIZED, 413), ({**AUTHORIZED, "Content-Type": "text/plain"}, 415), ({"Authorization": "Bearer no"}, 403)],
)
async def test_a_client_that_sends_before_it_reads_gets_its_refusal(
    service: Service, headers: dict[str, str], status: int
) -> None:
    """urllib says `Connection: close`, and reads nothing until all is sent; a closed socket would reset it."""
    request = urllib.request.Request(f"http://{service.address}/rpc", b"x" * 8_000_000, headers)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        await asyncio.to_thread(urllib.request.urlopen, request)
    with refusal.value as answer:
        assert answer.code == status
        assert json.load(answer)["ok"] is False
    assert service.router.calls == []


async def test_not_all_of_an_endless_body_is_read(service: Service) -> None:
    host, port = service.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer t0ken\r\n"
    writer.write(head + b"content-length: 2000000000\r\n\r\n")
    sent = 0
    with suppress(ConnectionError):
        while sent < 2_000_000_000:
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            sent += 1_000_000
    assert 16_000_000 <= sent < 100_000_000
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_client_that_leaves_in_the_middle_calls_nothing(service: Service) -> None:
    host, port = service.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    writer.write(b'authorization: Bearer t0ken\r\ncontent-length: 100\r\n\r\n{"method":')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await service.post({"method": "NS.after"})).status_code == 200
    assert [call.method for call in service.router.calls] == ["NS.after"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonx", "a/b+json"]
)
async def test_another_content_type_is_415(service: Service, kind: str) -> None:
    refused(await service.post({"method": "NS.a"}, Content_Type=kind), 415, "INVALID_ARGS")
    assert service.router.calls == []


async def test_no_credential_is_401(service: Service) -> None:
    response = await service.client.post("/rpc", json={"method": "NS.a"})
    refused(response, 401, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"] == "Bearer"
    assert service.router.calls == []


async def test_a_wrong_credential_is_403(service: Service) -> None:
    for token in ("wrong", "t0ke", "t0ken2", "jeton-é", "\N{SNOWMAN}", "T0KEN"):
        headers = {b"Authorization": f"Bearer {token}".encode(), b"Content-Type": b"application/json"}
        response = await service.client.post("/rpc", json={"method": "NS.a"}, headers=headers)
        refused(response, 403, "PERMISSION_DENIED")
    assert service.router.calls == []


async def test_two_credentials_are_403(service: Service) -> None:
    two = b"authorization: Bearer t0ken\r\nauthorization: Bearer t0ken\r\n"
    answer = await service.raw(b"POST /rpc HTTP/1.1\r\nhost: x\r\n" + two + b"content-length: 2\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 403 ")


async def test_the_credential_comes_before_everything_else(service: Service) -> None:
    service.lifecycle.drain()
    response = await service.client.post("/rpc", content=b"x" * (LIMIT + 1), headers={"Content-Type": "text/plain"})
    refused(response, 401, "UNAUTHENTICATED")


async def test_too_many_in_flight_is_429(service: Service) -> None:
    service.router.in_flight = 5
    response = await service.post({"method": "NS.a"})
    assert refused(response, 429, "RESOURCE_EXHAUSTED")["retry_after_ms"] == 1_000
    assert response.headers["retry-after"] == "1"
    assert service.router.calls == []
    service.router.in_flight = 4
    assert (await service.post({"method": "NS.a"})).status_code == 200


async def test_starting_and_draining_are_503(service: Service) -> None:
    for state in ("starting", "draining", "stopped"):
        service.lifecycle.state = state
        response = await service.post({"method": "NS.a"})
        assert refused(response, 503, "UNAVAILABLE")["retry_after_ms"] == 2_000
        assert response.headers["retry-after"] == "2"
    assert response.headers["connection"] == "close"
    assert service.router.calls == []


async def test_other_methods_are_405_and_other_paths_404(service: Service) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        response = await service.client.request(method, "/rpc")
        refused(response, 405, "INVALID_ARGS")
        assert response.headers["allow"] == "POST"
        refused(await service.client.request(method, "/rpc/NS.a"), 405, "INVALID_ARGS")
    for path in ("/nowhere", "/rpc/NS.a/b", "/RPC"):
        refused(await service.post({"method": "NS.a"}, path), 404, "NOT_FOUND")
    assert (await service.client.head("/rpc")).status_code == 405
    assert service.router.calls == []


async def test_an_unexpected_exception_shows_a_log_id_only(service: Service) -> None:
    service.router.fails = RuntimeError("secret text of an exception")
    error = refused(await service.post({"method": "NS.a"}), 500, "INTERNAL")
    assert error["details"]["log_id"] in service.log.getvalue()
    assert "secret text" not in service.log.getvalue()
    error = refused(await service.client.get("/explode"), 500, "INTERNAL")
    assert error["details"]["log_id"] in service.log.getvalue()
    assert (await service.client.get("/nowhere")).status_code == 404


# -- dev mode


async def reach(app: ASGIApp, peer: tuple[str, int] | None, host: str = "localhost:8080") -> list[int]:
    """What one request from `peer` is answered, without a socket: no other machine is at hand in a test."""
    statuses: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": "/", "client": peer, "query_string": b""}
    headers = [(b"host", host.encode()), (b"x-forwarded-for", b"127.0.0.1")]
    await app({**scope, "headers": headers}, receive, send)
    return statuses


async def test_dev_mode_answers_to_the_loopback_only(serve: Callable[[ASGIApp], Awaitable[str]]) -> None:
    app = LoopbackOnly(Response("hello"))
    address = await serve(app)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://{address}/")).text == "hello"
        rebound = await client.get(f"http://{address}/", headers={"Host": "evil.example:8080"})
        refused(rebound, 403, "PERMISSION_DENIED")
    for peer in [("10.0.0.5", 40_000), ("::ffff:10.0.0.5", 40_000), ("2001:db8::1", 40_000), ("127.0.0.1", 0), None]:
        assert await reach(app, peer) == [403]
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080", "app.localhost", "testserver"):
        assert await reach(app, ("127.0.0.1", 40_000), host) == [200]
    assert await reach(app, ("::1", 40_000)) == [200]


async def test_dev_mode_refuses_foreign_websockets() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError("reached")

    scope = {"type": "websocket", "path": "/ws", "headers": [], "client": ("10.0.0.5", 40_000)}
    await LoopbackOnly(never)(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
